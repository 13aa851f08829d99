"""Writes files and folders completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.errors import ConfigurationError, StorageError
from scripts.runtime.input_files import check_text, say
from scripts.runtime.obstacles import Obstacles
from scripts.runtime.ownership import NeededFiles, check_contents, write_mark

__all__ = [
    "check_not_root",
    "check_replaceable",
    "check_space",
    "check_writable",
    "file_hash",
    "is_alive",
    "publish_folder",
    "recover_folder",
    "staging_beside",
    "write_whole",
]

_HERE, _SWAP = -100, 2  # AT_FDCWD; RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS
_LONGEST = 200  # bytes of a name that gets additions; systems allow 255
_TRIES = 100  # to make a staging folder that no other process takes for an abandoned one


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    Raises:
        OSError: it can't be read, or isn't a file: a pipe would block, a device never ends.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Is not a file", str(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: str | Path) -> None:
    """Check that a folder can be written to, or created; doesn't create it.

    Raises:
        ConfigurationError: the path is empty, which would stand for the root of the file system.
        StorageError: if a file or a folder without permission is in the way.
    """
    check_text(folder)
    if not str(folder).strip():
        raise ConfigurationError(
            "the path of a folder to write to is empty; must name one ('.' is the current folder)"
        )
    target = Path(folder).absolute()
    if str(folder)[:1] == "~" and not os.path.lexists(folder):
        raise StorageError(
            f"{folder}: the shell didn't put the home folder in place of ~ (it doesn't after =); "
            f"write it out, or ./{folder} for a folder of that name"
        )
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # checked again below
    except (OSError, ValueError) as error:  # a name that no system accepts
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(f"{str(target)[:200]!r}: can't be written: {why}") from error
    existing = next(path for path in (target, *target.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise StorageError(f"{target}: can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{target}: can't be written: no permission to write in {existing}")


def check_not_root(path: str | Path) -> None:
    """Refuse a file or folder right in the root of the file system.

    Configurations join a folder and a name: an empty folder leaves ``/name``.

    Raises:
        ConfigurationError: it lies there.
    """
    place = Path(path)
    if place.is_absolute() and place.parent == Path(place.anchor):
        raise ConfigurationError(
            f"{place}: is in the root of the file system; was the path of a folder, such as "
            "--ckpt_dir or --output_dir, left empty?"
        )


def check_replaceable(*folders: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Make sure, before any work, that `publish_folder` will be able to publish.

    Args:
        folders: that will be replaced; they need not be there.
        inputs: what the job reads, or still needs afterwards; none of it may lie in a folder.

    Raises:
        StorageError: a folder holds anything but what this bundle published, an input lies there,
            or something keeps it from being replaced.
    """
    inputs = list(inputs)
    for path in (*folders, *inputs):
        check_text(path)
    obstacles, needed = Obstacles(), NeededFiles(inputs)
    for folder in folders:
        target = _behind_link(Path(folder).absolute())
        check_writable(target.parent)
        obstacles.check(target)
        needed.check(target)
        check_contents(target)


def _behind_link(folder: Path) -> Path:
    """The folder that a link leads to; any other path is returned unchanged."""
    return folder.resolve() if folder.is_symlink() and folder.exists() else folder


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_space(needs: Mapping[Path, Mapping[str, int]]) -> None:
    """Check that the disk has room for what a run will write.

    Args:
        needs: bytes by purpose, by folder; folders on one file system share its room.

    Raises:
        StorageError: with the sizes.
    """
    systems: dict[int, list[tuple[Path, Mapping[str, int]]]] = {}
    for folder, parts in needs.items():
        place = Path(folder).absolute()
        systems.setdefault(_there(place).stat().st_dev, []).append((place, parts))
    for wanted in systems.values():
        needed = sum(sum(parts.values()) for _, parts in wanted)
        free = shutil.disk_usage(_there(wanted[0][0])).free
        if needed <= free:
            continue
        terms = [
            f"{what} {_size(size)}" for _, parts in wanted for what, size in parts.items() if size
        ]
        raise StorageError(
            f"{' and '.join(str(place) for place, _ in wanted)}: up to {_size(needed)} are needed "
            f"({' + '.join(terms)}), {_size(free)} are free"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it if the block succeeds.

    Raises:
        StorageError: if the file can't be written.
    """
    target = Path(path)
    # Keep the suffix at the end: writers choose the format by it.
    staged = target.with_name(f".{os.getpid()}.{_fitting(target.name)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_halves(target)
        staged.unlink(missing_ok=True)  # a link would redirect the writing
        yield staged
        handle = os.open(staged, os.O_RDWR | os.O_NOFOLLOW)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        staged.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: can't be written: {say(error)}") from error
    except RuntimeError as error:
        # Torch hides the system's error, most often a full disk, behind another message.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        free = _size(shutil.disk_usage(_there(target.parent)).free)
        raise StorageError(
            f"{target}: can't be written: torch failed to write to it ({free} are free)"
        ) from error
    finally:
        # If a file is in the way of the folder, there is nothing to remove.
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _fitting(name: str) -> str:
    """The name, or a short substitute if the name with its additions would be too long."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()}{Path(name).suffix[:16]}"


def _remove_halves(target: Path) -> None:
    """Remove temporary files of ``path`` that killed processes of this host left."""
    for path in target.parent.glob(f".*.{glob.escape(_fitting(target.name))}"):
        process = path.name.split(".")[1]
        if process.isascii() and process.isdigit() and not is_alive(int(process)):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process with this number runs on this host."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs, and belongs to another user
        return True
    return True


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{_fitting(folder.name)}.replaced")


def recover_folder(folder: str | Path) -> None:
    """Undo a replacement that stopped between its two renames: restore the earlier folder."""
    target = Path(folder)
    earlier = _set_aside(target)
    if earlier.is_symlink():  # never set aside by this bundle, and it would redirect the atlas
        earlier.unlink()
    elif earlier.exists():
        if target.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            earlier.replace(target)


def _staging_prefix(folder: Path) -> str:
    return f".{_fitting(folder.name)}.staging-"


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder; False if another process holds the lock, or the file system has no locks.

    The system releases the lock however the process ends.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed process left while publishing."""
    made = re.compile(re.escape(_staging_prefix(folder)) + r"[a-z0-9_]+")  # as mkdtemp does
    for path in folder.parent.iterdir():
        if made.fullmatch(path.name):
            with _locked(path) as nobodys:
                if nobodys:
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` that no other process touches; removed at the end.

    Raises:
        OSError: it can't be made.
    """
    for _ in range(_TRIES):
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(target), dir=target.parent))
        handle = _claim(staging)
        if handle is not None:
            break
    else:
        raise OSError(
            errno.EAGAIN, "another program keeps removing the files made there", str(target)
        )
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def _claim(staging: Path) -> int | None:
    """Lock a folder that was just made; None if another process took it for abandoned before."""
    try:
        handle = os.open(staging, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that removes it holds the lock until it is gone.
        ours = staging.exists() and os.path.samestat(os.fstat(handle), staging.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:  # there are no locks here, so no process removes it either
        ours = True
    if ours:
        return handle
    os.close(handle)
    return None


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system can't.

    Raises:
        OSError: the exchange failed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        call, arguments = library.renameat2, (_HERE, paths[0], _HERE, paths[1], _SWAP)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        call, arguments = library.renamex_np, (*paths, _SWAP)
    else:
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)  # as os.rename does
    if call(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False  # some network file systems
    raise OSError(number, os.strerror(number), str(other))


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target``, removed at the end; removes those of killed processes
    first.

    Raises:
        OSError: it can't be created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    with _staging(target) as staging:
        yield staging


@contextmanager
def publish_folder(folder: str | Path) -> Iterator[Path]:
    """A staging folder that replaces ``folder`` if the block succeeds.

    The earlier folder stays until then, and stays if the block fails. The staging folder is
    hidden, beside it on the same file system. One that a killed process left is removed.

    If ``folder`` is a link to a folder, that folder is replaced.

    Args:
        folder: is replaced only if all that it holds was published by this bundle; it gets a mark
            that says so, see `scripts.runtime.ownership`.

    Raises:
        StorageError: if the folder can't be written or replaced.
    """
    target = Path(folder)
    try:
        target = _behind_link(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        check_replaceable(target)
        _remove_abandoned(target)
    except OSError as error:
        raise StorageError(f"{target}: can't be written: {say(error)}") from error
    try:
        with _staging(target) as staging:
            # mkdtemp's folders are closed to others; published ones follow the user's umask.
            umask = os.umask(0)
            os.umask(umask)
            staging.chmod(0o777 & ~umask)
            yield staging
            write_mark(staging)
            _put_in_place(staging, target)
    except OSError as error:
        recover_folder(target)
        raise StorageError(f"{target}: can't be published: {error}") from error


def _put_in_place(staging: Path, target: Path) -> None:
    """Let a complete folder take the target's name."""
    check_contents(target)  # also of what was put there while the job ran
    if not target.exists():
        staging.replace(target)
    elif not _exchange(staging, target):
        # A kill between these two leaves the earlier folder under another name, from which the
        # next run brings it back.
        earlier = _set_aside(target)
        target.replace(earlier)
        staging.replace(target)
        shutil.rmtree(earlier, ignore_errors=True)
