"""Checks, before any work, that a folder can be replaced."""

from __future__ import annotations

import array
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from scripts.errors import StorageError

__all__ = ["Obstacles"]

_MOUNTS = Path("/proc/self/mountinfo")
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS of Linux
_UNCHANGEABLE = 0x10 | 0x20  # immutable, append only


class Obstacles:
    """Checks whether folders can be replaced; mount points are read once for all of them."""

    def __init__(self) -> None:
        self._mounts = _mount_points()
        self._names: dict[Path, frozenset[str]] = {}

    def check(self, target: Path) -> None:
        """Check that a folder can be moved away, so that another one gets its name.

        Args:
            target: absolute; may be missing.

        Raises:
            StorageError: a file or a mount point is in the way, the folder is protected or belongs
                to another user, or the file system ignores a difference from another folder's
                name.
        """
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            what = "a broken link" if target.is_symlink() else "a file"
            raise StorageError(f"{target}: can't be written: {what} of that name is in the way")
        real = target.resolve()
        for mount in self._mounts:
            if mount == real or real in mount.parents:
                raise StorageError(
                    f"{target}: can't be replaced: {mount} is a mount point; choose another "
                    "folder, such as one inside it"
                )
        for place in (target, target.parent):
            if _is_unchangeable(place):
                raise StorageError(
                    f"{target}: can't be replaced: {place} is marked immutable or append only (see "
                    "lsattr)"
                )
        _check_sticky(target)
        if not os.access(target, os.W_OK | os.X_OK):  # its files could be moved, never removed
            raise StorageError(
                f"{target}: can't be replaced: no permission to remove its content; it "
                "belongs to another user, or is write-protected"
            )
        self._check_name(target)

    def _check_name(self, target: Path) -> None:
        """Refuse a folder that exists in another spelling on a file system that ignores case."""
        above = target.parent
        if above not in self._names:
            try:
                self._names[above] = frozenset(path.name for path in above.iterdir())
            except OSError:  # may be entered but not listed
                self._names[above] = frozenset({target.name})
        if target.name in self._names[above]:
            return
        same = [name for name in self._names[above] if _is_same(above / name, target)]
        if same:
            raise StorageError(
                f"{target}: can't be replaced: this file system takes it for {same[0]}, which is "
                "there; choose another folder or name"
            )


def _mount_points() -> list[Path]:
    """Mount points of file systems, including bind mounts."""
    result = []
    with suppress(OSError, IndexError):
        for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            # Spaces and the like are written in octal.
            name = line.split(" ")[4].encode("utf-8", "surrogateescape")
            result.append(Path(os.fsdecode(name.decode("unicode_escape").encode("latin-1"))))
    return result


def _is_unchangeable(folder: Path) -> bool:
    """Whether flags of the file system forbid changes of a folder's entries."""
    if sys.platform != "linux":
        return bool(getattr(folder.stat(), "st_flags", 0) & (stat.UF_IMMUTABLE | stat.SF_IMMUTABLE))
    import fcntl

    flags = array.array("L", [0])
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.ioctl(handle, _GET_FLAGS, flags, True)
    except OSError:  # the file system has no such flags
        return False
    finally:
        os.close(handle)
    return bool(flags[0] & _UNCHANGEABLE)


def _check_sticky(target: Path) -> None:
    """In a folder such as /tmp only the owner moves a folder."""
    above, status, user = target.parent.stat(), target.stat(), os.geteuid()
    if above.st_mode & stat.S_ISVTX and user not in (0, status.st_uid, above.st_uid):
        raise StorageError(
            f"{target}: can't be replaced: it belongs to another user, and {target.parent} lets "
            "only its owner move it"
        )


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False
