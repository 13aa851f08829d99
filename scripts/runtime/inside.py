"""Paths inside a folder, from names that come from outside.

Names in an ``atlas.json``, a sidecar or a model are data. Joined to a folder unchecked, one such as
``../../home`` leads out of it, and a link or a pipe that was put there leads anywhere.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from scripts.runtime.input_files import FileError

__all__ = ["Entry", "entries", "file_name_key", "inside", "name_reason"]

_LONGEST = 255  # bytes of a file name on common systems


def name_reason(name: object) -> str | None:
    """Why a text can't be the name of a file or folder; None if it can.

    Example:
        >>> name_reason("sub-01") is None, name_reason("../x")
        (True, "contains '/'")
    """
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name.strip():
        return "is empty"
    if name in (".", ".."):
        return f"is {name!r}"
    match = re.search(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]", name)
    if match is not None:
        return f"contains {match[0]!r}"
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "is text that can't be a file name"
    return f"has {length} bytes, more than {_LONGEST}" if length > _LONGEST else None


def file_name_key(name: str) -> str:
    """Equal for names that some file systems don't distinguish (by case or form of accents).

    Example:
        >>> file_name_key("Sub-01") == file_name_key("sub-01")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def inside(folder: str | Path, name: str, said_by: str = "", kind: str = "file") -> Path:
    """The path of an entry of a folder, guaranteed to be inside that folder.

    Links that stay in the folder are followed, others are refused. A missing entry isn't an error,
    because the path may be for writing.

    Args:
        folder: must contain the entry; may itself be a link.
        name: relative, with ``/`` between its parts.
        said_by: who names it, for messages.
        kind: ``file`` or ``folder``: what it must be if it exists.

    Returns:
        ``folder / name``.

    Raises:
        FileError: the name is absolute or contains ``..``, a part of it is a link that leads out,
            or it isn't of the given kind (but a pipe or a device, for example).
    """
    place = Path(folder)
    source = f", which {said_by} names" if said_by else ""

    def refused(why: str) -> FileError:
        return FileError(place, f"{name!r}{source}: {why}; must be a {kind} inside this folder")

    if not isinstance(name, str) or not name:
        raise refused("is not a name")
    if PurePosixPath(name).is_absolute() or re.match(r"[A-Za-z]:", name) or name.startswith("~"):
        raise refused("is an absolute path")
    for part in name.split("/"):
        reason = name_reason(part)
        if reason is not None:
            raise refused(reason)
    path = place / name
    try:
        root, real = place.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise refused(f"can't be followed ({error})") from error
    if not real.is_relative_to(root):
        raise refused("is, or is behind, a link that leads out")
    try:
        mode = real.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:
        raise refused(f"can't be read: {error.strerror}") from error
    if not (stat.S_ISDIR(mode) if kind == "folder" else stat.S_ISREG(mode)):
        raise refused(f"is {_what(mode)}")
    return path


class Entry:
    """An entry of a folder.

    Attributes:
        name: relative to the folder, with ``/`` between its parts.
        path: of it.
        what: ``file``, ``folder``, ``link``, or another kind such as ``pipe``.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        self.what = _what(mode).removeprefix("a ")


def entries(folder: Path) -> Iterator[Entry]:
    """All entries of a folder at any depth, by name; links are listed but not followed.

    Of the folders only empty ones are listed: the others are implied by their entries.

    Raises:
        FileError: a folder can't be read.
    """
    waiting = [folder]
    result: list[Entry] = []
    while waiting:
        place = waiting.pop()
        try:
            paths = sorted(place.iterdir())
        except OSError as error:
            raise FileError(place, f"can't be read: {error.strerror}") from error
        if not paths and place != folder:
            result.append(Entry(folder, place))
        for path in paths:
            one = Entry(folder, path)
            if one.what == "folder":
                waiting.append(one.path)
            else:
                result.append(one)
    yield from sorted(result, key=lambda one: one.name)


def _what(mode: int) -> str:
    kinds = (
        (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )  # fmt: skip
    return next((what for test, what in kinds if test(mode)), "a special file")
