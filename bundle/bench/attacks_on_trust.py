"""Attacks by text, names and files that come from outside."""

from __future__ import annotations

__all__: list[str] = []
