"""Files that must stay as they are while a job reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.errors import CohortError
from scripts.runtime.input_files import check_file, say
from scripts.runtime.storage import file_hash

__all__ = ["FileStates", "WatchedFiles", "changed"]


def changed(path: str | Path) -> CohortError:
    """The error for an input file that has changed."""
    return CohortError(
        f"{path}: changed while it was in use; nothing is published; start again when no "
        "other program writes to it"
    )


class WatchedFiles:
    """Hashes of files before a job reads them, compared before it publishes.

    If both are equal, the bytes read in between are those of the hash.

    Args:
        paths: of regular files.

    Raises:
        CohortError: one can't be read.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "map")
        >>> _ = path.write_text("a")
        >>> watched = WatchedFiles([path])
        >>> watched.check()
        >>> _ = path.write_text("b")
        >>> watched.check()
        Traceback (most recent call last):
        scripts.errors.CohortError: ...map: changed while it was in use; ...
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._hashes = {path: _hash(path) for path in dict.fromkeys(map(Path, paths))}

    def add(self, other: WatchedFiles) -> None:
        """Watch the files of another as well."""
        self._hashes |= other._hashes

    def sha256(self, path: str | Path) -> str:
        """Hash of a watched file's bytes."""
        return self._hashes[Path(path)]

    def check(self) -> None:
        """Make sure that all are what they were.

        Raises:
            CohortError: naming the first one that isn't.
        """
        for path, expected in self._hashes.items():
            if _hash(path) != expected:
                raise changed(path)


class FileStates:
    """Files as the system describes them before they are read: cheaper than hashes.

    A file that was written or replaced since has another size, time or number.
    """

    def __init__(self) -> None:
        self._states: dict[Path, tuple[int, ...] | None] = {}

    def add(self, path: Path) -> None:
        """Note a file that is about to be read; the first state counts."""
        if path not in self._states:
            self._states[path] = _state(path)

    def changed(self) -> Path | None:
        """The first file that has changed; None if none has."""
        return next((path for path, was in self._states.items() if _state(path) != was), None)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        one = path.stat()
    except (OSError, ValueError):  # missing, or no path at all
        return None
    return one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns


def _hash(path: Path) -> str:
    check_file(path)
    try:
        return file_hash(path)
    except OSError as error:
        raise CohortError(f"{path}: can't be read: {say(error)}") from error
