"""Checks files from outside before they are read: a pipe blocks, a device never ends."""

from __future__ import annotations

import codecs
import errno
import functools
import os
import stat
from pathlib import Path
from typing import Any

from scripts.errors import CohortError, ConfigurationError
from scripts.runtime.memory import available_memory
from scripts.runtime.plain_data import parse_json

__all__ = [
    "LONGEST_TEXT",
    "FileError",
    "check_file",
    "check_fits",
    "check_named",
    "check_text",
    "read_json",
    "read_text",
    "say",
]

LONGEST_TEXT = 1 << 26
"""Largest text file that is read, in bytes: 64 MiB, a table of a million people."""
_LONGEST_REASON = 300  # characters
_MADE_UP = ("/proc", "/sys", "/sys/kernel/debug", "/sys/kernel/tracing")


class FileError(CohortError):
    """A file can't be used.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def check_file(path: Path) -> os.stat_result:
    """Status of a regular file.

    Raises:
        FileError: it doesn't exist, is a folder, a pipe, a device or a broken link, or is larger
            than the available memory.
    """
    try:
        status = path.stat()
    except ValueError as error:  # for example a name with a zero byte
        raise FileError(path, f"can't be read: {say(error)}") from error
    except OSError as error:
        broken = path.is_symlink() and (error.errno == errno.ELOOP or not path.exists())
        raise FileError(
            path, f"can't be read: {'is a broken link' if broken else say(error)}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "is not a file"
        raise FileError(path, f"can't be read: {what}")
    if status.st_size == 0 and status.st_dev in _made_up_devices():
        raise FileError(path, "can't be read: is a file of the system that may never end")
    return status


@functools.cache
def _made_up_devices() -> frozenset[int]:
    """Device numbers of file systems such as /proc, some of whose files block a reader."""
    return frozenset(Path(place).stat().st_dev for place in _MADE_UP if Path(place).is_dir())


def check_named(path: str | Path, key: str) -> None:
    """Refuse an empty path, which would stand for the current folder, and one that isn't text.

    Args:
        path: as it was given.
        key: of the configuration that gave it.

    Raises:
        ConfigurationError: it is empty, or MONAI's command line has made a number of it.
    """
    check_text(path)
    if not str(path).strip():
        raise ConfigurationError(
            f"{key} is empty; must name a file or folder ('.' is the current folder)"
        )


def check_text(path: object) -> None:
    """Refuse a path that isn't text.

    Raises:
        ConfigurationError: MONAI's command line has made a number or a list of it.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(
            f"the path {path!r} is not text: MONAI's command line reads words as Python; put "
            "quotes inside quotes, such as --dataset_dir \"'20240115'\", or use python -m bundle, "
            "which takes a path as it is typed"
        )


def check_fits(path: Path, size: int) -> None:
    """Refuse a file that doesn't fit into memory.

    Raises:
        FileError: with the sizes.
    """
    free = available_memory()
    if free is not None and size > free:
        raise FileError(
            path,
            f"can't be read: needs {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            "available",
        )


def read_text(path: Path, longest: int = LONGEST_TEXT, encoding: str = "utf-8") -> str:
    """The content of a text file.

    Args:
        path: the file.
        longest: largest size of such a file, bytes.
        encoding: of the file.

    Raises:
        FileError: it can't be read, or is too large.
        UnicodeDecodeError: it isn't text in this encoding.
    """
    size = check_file(path).st_size
    try:
        # Read one byte more than allowed: some files, such as those of /proc, report no size.
        with path.open("rb") as file:
            raw = b"" if size > longest else file.read(longest + 1)
    except OSError as error:
        raise FileError(path, f"can't be read: {say(error)}") from error
    if max(size, len(raw)) > longest:
        raise FileError(
            path,
            f"can't be read: has {max(size, len(raw)) / 1e6:.1f} MB; such a file may have at most "
            f"{longest / 1e6:.1f} MB",
        )
    # Editors of Windows put a mark before UTF-8, which is not a part of the text.
    raw = raw.removeprefix(codecs.BOM_UTF8)
    return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, longest: int = LONGEST_TEXT) -> Any:
    """The content of a JSON file; see `parse_json`.

    Args:
        path: the file.
        longest: largest size, bytes.

    Raises:
        FileError: it can't be read, or is longer.
        ValueError: it isn't JSON, or exceeds a limit of `parse_json`.
    """
    return parse_json(read_text(path, longest))


def say(error: BaseException) -> str:
    """The message of an error as one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
