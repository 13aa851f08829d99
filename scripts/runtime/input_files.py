"""Files from outside, looked at before they are read: pipes wait for ever, devices never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from scripts.errors import CohortError
from scripts.runtime.memory import available_memory
from scripts.runtime.plain_data import parse_json

__all__ = ["LONGEST_TEXT", "FileError", "check_file", "check_fits", "read_json", "read_text", "say"]

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


def read_json(path: Path, longest: int = LONGEST_TEXT) -> Any:
    """What a JSON file holds; see `parse_json`.

    Args:
        path: the file.
        longest: bytes that it may have.

    Raises:
        FileError: it can't be read, or is longer.
        ValueError: it is no JSON, or none that is believed.
    """
    return parse_json(read_text(path, longest))


def say(error: BaseException) -> str:
    """An error in a line, which isn't long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
