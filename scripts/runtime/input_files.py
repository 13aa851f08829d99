"""Files from outside, looked at before they are read: pipes wait for ever, devices never end."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from scripts.errors import CohortError, ConfigurationError
from scripts.runtime.memory import available_memory

__all__ = [
    "LONGEST_TEXT",
    "FileError",
    "check_file",
    "check_fits",
    "check_named",
    "read_json",
    "read_text",
    "say",
]

LONGEST_TEXT = 1 << 26
"""Bytes of the longest text that is read: 64 MiB, a table of a million people."""
_LONGEST_REASON = 300  # characters


class FileError(CohortError):
    """A file can't be used.

    Attributes:
        path: the file at fault.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def check_file(path: Path) -> os.stat_result:
    """What the system says of a file.

    Raises:
        FileError: it is none, a folder, a pipe or a device, a broken link, or more than memory
            holds.
    """
    try:
        status = path.stat()
    except ValueError as error:  # such as a name with a zero byte
        raise FileError(path, f"can't be read: {say(error)}") from error
    except OSError as error:
        broken = path.is_symlink() and (error.errno == errno.ELOOP or not path.exists())
        raise FileError(
            path, f"can't be read: {'is a broken link' if broken else say(error)}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "is no file"
        raise FileError(path, f"can't be read: {what}")
    return status


def check_named(path: str | Path, key: str) -> None:
    """Refuse an empty path, which would stand for the current folder.

    Args:
        path: as it was given.
        key: of the configuration that gave it.

    Raises:
        ConfigurationError: it is empty.
    """
    if not str(path).strip():
        raise ConfigurationError(
            f"{key} is empty; must name a file or folder ('.' is the current folder)"
        )


def check_fits(path: Path, size: int) -> None:
    """Refuse what memory can't hold.

    Raises:
        FileError: with the arithmetic.
    """
    free = available_memory()
    if free is not None and size > free:
        raise FileError(
            path,
            f"can't be read: needs {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            "available",
        )


def read_text(path: Path, longest: int = LONGEST_TEXT, encoding: str = "utf-8") -> str:
    """The whole of a text file.

    Args:
        path: the file.
        longest: bytes that a text of its kind has at most.
        encoding: its own.

    Raises:
        FileError: it can't be read, or is longer.
        UnicodeDecodeError: it is no such text.
    """
    size = check_file(path).st_size
    try:
        # A byte more than may be there: some files, such as those of /proc, tell no size.
        with path.open("rb") as file:
            raw = b"" if size > longest else file.read(longest + 1)
    except OSError as error:
        raise FileError(path, f"can't be read: {say(error)}") from error
    if max(size, len(raw)) > longest:
        raise FileError(
            path,
            f"can't be read: has {max(size, len(raw)) / 1e6:.1f} MB, more than the "
            f"{longest / 1e6:.1f} MB that a text of its kind may have",
        )
    return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileError: it can't be read.
        ValueError: it is no JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def say(error: BaseException) -> str:
    """An error in a line, which isn't long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
