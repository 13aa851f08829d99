"""Folders and files of a configuration, looked at before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.overrides import UsageError

__all__ = ["check_folders"]

_FILES = frozenset({"atlas", "bundle_root", "fixed", "input", "reference", "subject"})


def check_folders(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse paths that are empty, or that the command line names without a value.

    Joined with a name, an empty path is the root of the file system; by itself it is the current
    folder.

    Args:
        config: the configuration, overrides applied.
        given: overrides of the command line.

    Raises:
        UsageError: naming the key.
    """
    for key, value in config.items():
        if not (key.endswith("_dir") or key in _FILES):
            continue
        if isinstance(value, bool):
            raise UsageError(f"--{key} needs a path after it")
        # A required path is empty in the shipped configuration, and the job reports it.
        empty = isinstance(value, str) and not value.strip()
        if empty and (key.endswith("_dir") or key in given):
            raise UsageError(
                f"--{key} is empty; it must name a file or folder ('.' is the current folder)"
            )
