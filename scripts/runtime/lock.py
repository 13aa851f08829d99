"""One run at a time in a folder."""

from __future__ import annotations

import atexit
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

from filelock import FileLock, SoftFileLock, Timeout

from scripts.errors import StorageError
from scripts.runtime.input_files import say
from scripts.runtime.plain_data import parse_json
from scripts.runtime.storage import is_alive

__all__ = ["LOCK_FILE", "FolderLock", "SharedLock", "lock_folders", "locked_folders"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".tract_atlas.lock"

# How long to wait for the owner's name, which is written just after the lock is taken.
_PATIENCE_S = 1.0
_LONGEST_OWNER = 4096  # characters of a lock file
_LAST_SECOND = 1e12  # of a time that a lock file names; NaN and infinity are beyond as well
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[Path, FolderLock] = {}


class FolderLock:
    """Keeps other processes from writing to a folder until `release`.

    Uses the system's lock (flock) on a file in the folder, which ends with the process. On a file
    system without flock the file itself is the lock; it is taken over if it names a process of this
    host that no longer runs. The file names the owner and the time.

    A process may lock a folder several times, see `lock_folders`: its jobs run one after another,
    and only the last release frees the folder.

    Args:
        folder: created if missing; removed at the release if it is still empty.

    Raises:
        StorageError: if another process holds the folder, or it can't be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.file = self.folder / LOCK_FILE
        self.process = os.getpid()
        self.count = 0
        self._made = [p for p in (self.folder, *self.folder.parents) if not os.path.lexists(p)]
        self._owner = {
            "pid": self.process, "host": socket.gethostname(), "since": time.time(),
            "processes": _process_space(),
        }  # fmt: skip
        self._lock = FileLock(
            self.file, _PATIENCE_S, thread_local=False, poll_interval=0.01, on_acquired=self._sign
        )
        try:
            try:
                self._lock.acquire(cancel_check=self._is_taken)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                self._take_by_name()
        except Timeout as taken:
            raise StorageError(
                f"{self.folder}: another run is using this folder: {_describe(self.file)}; wait "
                "for it, or choose another folder; if that run no longer exists, delete "
                f"{self.file if self._is_taken() else taken.lock_file}"
            ) from taken
        except OSError as error:
            why = f"{self.file} is a link; delete it" if self.file.is_symlink() else say(error)
            raise StorageError(f"{self.folder}: can't be locked: {why}") from error

    def release(self) -> None:
        """Release the lock. Does nothing in a forked child: the lock belongs to its parent."""
        self.count -= 1
        if os.getpid() != self.process or self.count > 0 or not self._owner:
            return
        _held.pop(self.folder, None)
        with suppress(OSError):  # a file that stays behind names a process that no longer runs
            if _read_owner(self.file) == self._owner:
                self.file.unlink()
        self._owner = {}
        self._lock.release()
        with suppress(OSError):  # the folder stays if something was put into it
            for path in self._made:
                path.rmdir()

    def _is_taken(self) -> bool:
        """Whether the file names a process that may still run."""
        return _may_run(_read_owner(self.file))

    def _take_by_name(self) -> None:
        """Without flock: a short lock makes checking and writing the file a single step."""
        guard = SoftFileLock(f"{self.file}.guard", _PATIENCE_S, poll_interval=0.01)
        with guard.acquire(cancel_check=self._is_taken):
            if self._is_taken():
                raise Timeout(str(self.file))
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                self._sign(handle)
            finally:
                os.close(handle)

    def _sign(self, handle: int) -> None:
        """Write this process into the file after taking the lock."""
        if _read_owner(self.file):
            logger.warning(
                "%s: taken over from %s, which no longer runs", self.folder, _describe(self.file)
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(self._owner).encode(), 0)


class SharedLock:
    """A folder that others may read too, and that no run writes to until `release`.

    It is the system's shared lock. If the file system has no locks, or the folder is read-only, no
    other process is kept out; it is only checked that no run uses the folder now.

    Args:
        folder: read; it need not be writable.

    Raises:
        StorageError: a run uses the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.file = self.folder / LOCK_FILE
        self.process = os.getpid()
        self._handle: int | None = None
        while self._handle is None and self._attempt():
            pass

    def _attempt(self) -> bool:
        """Try to get the lock; whether another try is worth it."""
        if self.folder in _held and _held[self.folder].process == self.process:
            return False  # the run of this process: no other process writes there
        handle = self._open()
        if handle is None:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(handle), os.lstat(self.file))
        except FileNotFoundError:
            ours = False
        except BlockingIOError as error:
            os.close(handle)
            raise self._taken() from error
        except OSError as error:
            os.close(handle)
            if error.errno not in _NO_FLOCK:
                raise StorageError(f"{self.folder}: can't be locked: {say(error)}") from error
            self._require_idle()
            return False
        if not ours:  # it was removed at the end of a run, and may have been made anew
            os.close(handle)
            return True
        self._handle = handle
        with suppress(OSError):  # opened to be read only
            owner = {"pid": self.process, "host": socket.gethostname(), "since": time.time()}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
        return False

    def _open(self) -> int | None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        for mode in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
            with suppress(PermissionError, FileNotFoundError):
                try:
                    return os.open(self.file, mode | flags, 0o666)
                except OSError as error:
                    if error.errno == errno.ELOOP:
                        raise StorageError(
                            f"{self.folder}: can't be locked: {self.file} is a link; delete it"
                        ) from error
                    if error.errno != errno.EROFS:
                        raise
        return None

    def _require_idle(self) -> None:
        if _may_run(_read_owner(self.file)):
            raise self._taken()

    def _taken(self) -> StorageError:
        return StorageError(
            f"{self.folder}: another run is using this folder: {_describe(self.file)}; wait for it"
        )

    def release(self) -> None:
        """Let runs in again. In a forked child this does nothing: the lock is its parent's."""
        handle, self._handle = self._handle, None
        if handle is None or os.getpid() != self.process:
            return
        with suppress(OSError):  # other readers are there: the file is theirs too
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.file.unlink()
        os.close(handle)


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


@atexit.register
def _release_all() -> None:
    """Remove our lock files before filelock's hook runs, which would leave them."""
    for lock in list(_held.values()):
        lock.count = 0
        lock.release()


def _read_owner(file: Path) -> dict[str, Any] | None:
    """The content of a lock file; None if it is missing or unreadable."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, encoding="utf-8") as opened:
            content = parse_json(opened.read(_LONGEST_OWNER))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or type(content.get("pid")) is not int:
        return None
    since = content.get("since")
    return content if isinstance(since, int | float) and abs(since) < _LAST_SECOND else None


def _may_run(owner: dict[str, Any] | None) -> bool:
    """Whether an owner may still run: only processes that this one can see are judged."""
    if owner is None:
        return False
    elsewhere = owner.get("host") != socket.gethostname()
    # Containers may share a host's name; their process numbers mean other processes.
    apart = owner.get("processes", _process_space()) != _process_space()
    return elsewhere or apart or is_alive(owner["pid"])


def _process_space() -> int | None:
    """Number of the namespace of process numbers (a container has one); None: only one exists."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return None


def _describe(file: Path) -> str:
    """The process that a lock file names, and since when, as text."""
    owner = _read_owner(file)
    if owner is None:
        return "an unknown process"
    age = max(0, int(time.time() - owner["since"]))
    spans = ((age // 86400, "d"), (age // 3600 % 24, "h"), (age // 60 % 60, "min"), (age % 60, "s"))
    first = next((i for i, (n, _) in enumerate(spans) if n), len(spans) - 1)
    duration = " ".join(f"{n} {unit}" for n, unit in spans[first : first + 2])
    return f"process {owner['pid']} on {owner.get('host')}, for {duration}"
