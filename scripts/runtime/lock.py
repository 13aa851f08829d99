"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scripts.errors import StorageError

__all__ = ["LOCK_FILE", "FolderLock", "lock_folders", "locked_folders"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".tract_atlas.lock"

# How long one who is refused waits for the owner's name: the lock comes before the writing.
_NAMED_WITHIN_S = 0.5
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[Path, FolderLock] = {}


class FolderLock:
    """A folder that no other process's run writes to until `release`.

    The system's own lock (flock) on a file in the folder: however the process ends, the lock
    ends with it, and a file that a killed run leaves means nothing. On a file system without
    such locks the file itself is the lock, and is taken over if it names a process of this host
    that is no more. The file says who holds it.

    A process may lock a folder several times: its jobs follow one another, and only the last
    release frees the folder.

    Args:
        folder: made if it isn't there; removed at the release if nothing was put there.

    Raises:
        StorageError: if another process holds the folder, or it can't be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.file = self.folder / LOCK_FILE
        self.process = os.getpid()
        self.count = 0
        self._made = [
            path for path in (self.folder, *self.folder.parents) if not os.path.lexists(path)
        ]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = self._acquire()
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(_ourselves()).encode(), 0)
        except OSError as error:
            raise StorageError(f"{self.folder}: can't be locked: {error}") from error

    def release(self) -> None:
        """Let others in. In a forked child this does nothing: the lock is its parent's."""
        if os.getpid() != self.process or self._handle < 0:
            return
        self.count -= 1
        if self.count > 0:
            return
        _held.pop(self.folder, None)
        # Removed while it is still locked; who waits for it sees that it is gone, see _acquire.
        with suppress(OSError):
            self.file.unlink()
        os.close(self._handle)
        self._handle = -1
        with suppress(OSError):  # something was put there: it stays
            for path in self._made:
                path.rmdir()

    def _acquire(self) -> int:
        while True:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if error.errno in _WITHOUT_LOCKS:
                    return self._acquire_by_name()
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise self._refusal(_awaited_owner(self.file)) from error
                raise
            # Between our opening it and our lock, its owner may have removed it.
            if _is_file(handle, self.file):
                left = _owner(self.file)
                if left:
                    logger.warning("%s: taken over from %s, which is no more", self.folder, left)
                return handle
            os.close(handle)

    def _acquire_by_name(self) -> int:
        """Where there is no flock: the file is the lock, written before it gets its name."""
        there = _read(self.file)
        if there is not None and not _is_gone(there):
            raise self._refusal(_owner(self.file))
        if there is not None:
            logger.warning(
                "%s: taken over from %s, which is no more", self.folder, _owner(self.file)
            )
        own = self.file.with_name(f"{LOCK_FILE}.{os.getpid()}")
        own.write_text(json.dumps(_ourselves()), encoding="utf-8")
        # The empty file that _acquire just made, or the stale one.
        self.file.unlink(missing_ok=True)
        try:
            os.link(own, self.file)  # fails if another was quicker
        except FileExistsError as error:
            raise self._refusal(_owner(self.file)) from error
        finally:
            own.unlink()
        return os.open(self.file, os.O_RDWR)

    def _refusal(self, owner: str) -> StorageError:
        return StorageError(
            f"{self.folder}: another run is at work there: {owner or 'an unknown process'}; wait "
            f"for it, or choose another folder; if that run is no more, delete {self.file}"
        )


def lock_folders(folders: list[str | Path] | tuple[str | Path, ...]) -> list[FolderLock]:
    """Lock several folders, or none.

    Raises:
        StorageError: see `FolderLock`.
    """
    locks: list[FolderLock] = []
    try:
        for folder in folders:
            place = Path(folder).resolve()
            lock = _held.get(place)
            if lock is None or lock.process != os.getpid():
                lock = _held[place] = FolderLock(place)
            lock.count += 1
            locks.append(lock)
    except StorageError:
        for lock in locks:
            lock.release()
        raise
    return locks


@contextmanager
def locked_folders(*folders: str | Path) -> Iterator[None]:
    """Several folders locked for as long as the block lasts.

    Raises:
        StorageError: see `FolderLock`.
    """
    locks = lock_folders(folders)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def _ourselves() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock file says; None without one, or with one that says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sound = isinstance(found, dict) and isinstance(found.get("pid"), int)
    return found if sound and isinstance(found.get("since"), int | float) else None


def _owner(path: Path) -> str:
    """The process that a lock file names, and for how long it has had it."""
    there = _read(path)
    if there is None:
        return ""
    age = max(0, int(time.time() - there["since"]))
    spans = ((age // 86400, "d"), (age // 3600 % 24, "h"), (age // 60 % 60, "min"), (age % 60, "s"))
    first = next((i for i, (n, _) in enumerate(spans) if n), len(spans) - 1)
    told = " ".join(f"{n} {unit}" for n, unit in spans[first : first + 2])
    return f"process {there['pid']} on {there.get('host')}, for {told}"


def _awaited_owner(path: Path) -> str:
    """`_owner`, asked again for a moment while the file says nothing yet."""
    deadline = time.monotonic() + _NAMED_WITHIN_S
    while not (owner := _owner(path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return owner


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process was one of this host and has ended."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        return False
    return False


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
