"""Fixtures of several tests of published folders."""

from chosen_fields import bench  # noqa: F401 (a fixture)
