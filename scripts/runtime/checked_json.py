"""JSON files with a checksum of their content, which shows every changed byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.runtime.input_files import read_json
from scripts.runtime.storage import write_whole

__all__ = ["read_checked", "verified", "write_checked"]

_KEY = "checksum"


def write_checked(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping; the file appears completely or not at all.

    Raises:
        StorageError: it can't be written.
    """
    content = json.loads(json.dumps(dict(values)))  # as a reader will get it
    with write_whole(path) as staged:
        text = json.dumps({**content, _KEY: _checksum(content)}, indent=1)
        staged.write_text(text + "\n", encoding="utf-8")


def read_checked(path: Path, keys: frozenset[str] | None = None) -> dict[str, Any]:
    """Read a mapping; files of earlier versions have no checksum and are not checked.

    Args:
        path: of the file.
        keys: allowed keys; None: any.

    Raises:
        FileError: the file can't be read.
        ValueError: it isn't JSON or a mapping, has another key, or its checksum differs.
    """
    return verified(read_json(path), keys)


def verified(content: Any, keys: frozenset[str] | None = None) -> dict[str, Any]:
    """Check content that has been read, as `read_checked` does, and return it without checksum.

    Raises:
        ValueError: see `read_checked`.
    """
    if not isinstance(content, dict):
        raise ValueError("its content is not a mapping")
    content = dict(content)
    checksum = content.pop(_KEY, None)
    unknown = [] if keys is None else sorted(content.keys() - keys)
    if unknown:
        raise ValueError(f"has an unknown key, {unknown[0][:40]!r}")
    if checksum is not None and checksum != _checksum(content):
        raise ValueError("its content is not what was written (checksum)")
    return content


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()
