"""Checks of zarr folders from outside, whose entries the zarr library reads unchecked.

A folder may contain a pipe that blocks its reader, a description nested too deeply, a chunk that
unpacks to any size, or ask for a codec that runs code.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.runtime.input_files import FileError, check_file, check_fits, read_json

__all__ = ["check_zarr", "check_zarr_array"]

_DESCRIPTIONS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_LONGEST = 1 << 24  # bytes of a description: 16 MiB
_CODE = "pickle"  # in the name of codecs that run what they read
_SLACK = 1 << 16  # bytes by which a packed chunk may exceed its values


def check_zarr(folder: Path) -> None:
    """Make sure that a zarr folder holds files alone, and descriptions that can be read.

    Links to files are followed, as data managers make them.

    Raises:
        FileError: naming the entry.
    """
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.name in _DESCRIPTIONS:
            try:
                content = read_json(path, _LONGEST)
            except ValueError as error:
                raise FileError(path, f"is not a description of a zarr array: {error}") from error
            codec = next((one for one in _texts(content) if _CODE in one), None)
            if codec is not None and entry.name != ".zattrs":
                raise FileError(
                    path, f"asks for the codec {codec!r}, which runs code from the file"
                )
        elif not entry.is_file(follow_symlinks=False):
            check_file(path)


def check_zarr_array(store: Path, array: Any) -> None:
    """Make sure that an array holds numbers, and that its chunks fit into memory.

    Args:
        store: folder of the array.
        array: as zarr opened it.

    Raises:
        FileError: it doesn't; or a chunk is longer than its values, so that it may unpack to more.
    """
    if getattr(array.dtype, "kind", "O") not in "iufbc":
        raise FileError(store, f"contains {array.dtype} values, not numbers")
    shape = getattr(array, "shards", None) or array.chunks
    size = math.prod(shape) * array.dtype.itemsize
    check_fits(store, 3 * size)
    for entry in _entries(store):
        if entry.name in _DESCRIPTIONS:
            continue
        status = entry.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 1.1 * size + _SLACK:
            raise FileError(
                Path(entry.path),
                f"has {status.st_size} bytes, more than a chunk of {size} bytes is packed to",
            )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All entries below a folder but for folders.

    Raises:
        FileError: a folder can't be read, or is a link: it could lead round in a circle.
    """
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_dir():
                        raise FileError(Path(entry.path), "is a link to a folder; copy it instead")
                    else:
                        yield entry
        except OSError as error:
            raise FileError(Path(place), f"can't be read: {error.strerror}") from error


def _texts(value: Any) -> Iterator[str]:
    """Values of ``id`` and ``name`` at any depth of a description, but for attributes."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for key, inner in one.items():
                if key in ("id", "name") and isinstance(inner, str):
                    yield inner
                elif key != "attributes" and not key.endswith(".zattrs"):
                    waiting.append(inner)
        elif isinstance(one, list):
            waiting += one
