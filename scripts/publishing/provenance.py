"""The origin of an atlas for ``atlas.json``: code, libraries, a hash of the whole content."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.publishing.sidecars import VERSION

__all__ = ["code_identity", "description_hash", "versions_here"]

_SCRIPTS = Path(__file__).resolve().parent.parent


def description_hash(about: Mapping[str, Any]) -> str:
    """SHA-256 of the content of ``atlas.json`` without this entry."""
    described = {key: value for key, value in about.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode("ascii")).hexdigest()


@functools.cache
def code_identity() -> dict[str, str]:
    """The bundle's version, and a SHA-256 of the names and contents of its ``scripts``.

    It is the same for a checkout, a copy without history and an unpacked archive of the same code.
    """
    digest = hashlib.sha256()
    for path in sorted(_SCRIPTS.rglob("*.py")):
        name = path.relative_to(_SCRIPTS).as_posix().encode()
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(name + b"\0" + content)
    return {"version": VERSION, "sha256": digest.hexdigest()}


def versions_here(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    result = {"python": platform.python_version()}
    for package in packages:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = "not installed"
    return result
