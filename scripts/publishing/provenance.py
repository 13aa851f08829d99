"""What made an atlas, as ``atlas.json`` says it: code, libraries, a hash of all that it says."""

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
    """SHA-256 of everything that ``atlas.json`` says, but for this number itself."""
    said = {key: value for key, value in about.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("ascii")).hexdigest()


@functools.cache
def code_identity() -> dict[str, str]:
    """The bundle's version, and a SHA-256 over the names and contents of its ``scripts``.

    The same for a checkout, a copy without its history and an unpacked archive of the same code.
    """
    digest = hashlib.sha256()
    for path in sorted(_SCRIPTS.rglob("*.py")):
        name = path.relative_to(_SCRIPTS).as_posix().encode()
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(name + b"\0" + content)
    return {"version": VERSION, "sha256": digest.hexdigest()}


def versions_here(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
