"""JSON files that tell of each changed byte: they carry a checksum of what they say."""

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
    """Write a mapping, whole.

    Raises:
        StorageError: it can't be written.
    """
    content = json.loads(json.dumps(dict(values)))  # as it will be read
    with write_whole(path) as staged:
        text = json.dumps({**content, _KEY: _checksum(content)}, indent=1)
        staged.write_text(text + "\n", encoding="utf-8")


def read_checked(path: Path, keys: frozenset[str] | None = None) -> dict[str, Any]:
    """Read a mapping; one from before there were checksums is taken as it is.

    Args:
        path: of the file.
        keys: all that the mapping may have; None: any.

    Raises:
        FileError: the file can't be read.
        ValueError: it is damaged: no JSON, no mapping, another key, or not what was written.
    """
    return verified(read_json(path), keys)


def verified(found: Any, keys: frozenset[str] | None = None) -> dict[str, Any]:
    """As `read_checked`, of what was read already; without its checksum.

    Raises:
        ValueError: it is damaged.
    """
    if not isinstance(found, dict):
        raise ValueError("holds no mapping")
    found = dict(found)
    checksum = found.pop(_KEY, None)
    unknown = [] if keys is None else sorted(found.keys() - keys)
    if unknown:
        raise ValueError(f"has an unknown key, {unknown[0][:40]!r}")
    if checksum is not None and checksum != _checksum(found):
        raise ValueError("its content is not what was written (checksum)")
    return found


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()
