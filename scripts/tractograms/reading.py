"""Tractograms as files: opened by their suffix, read piece by piece.

TRK, TCK, TRX and (legacy) VTK. Whatever the format, points come as world millimetres (RAS).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.runtime.input_files import FileError, check_file, say
from scripts.tractograms.source import Source
from scripts.tractograms.streamlines import Streamlines, TractogramError
from scripts.tractograms.tck import open_tck
from scripts.tractograms.trk import open_trk
from scripts.tractograms.trx import open_trx
from scripts.tractograms.vtk import open_vtk

__all__ = ["CHUNK", "SUFFIXES", "Tractogram", "is_tractogram", "open_tractogram"]

CHUNK = 1 << 17
"""Points that are held at once, unless a single streamline has more."""

_OPENERS: dict[str, Callable[[Path], Source]] = {
    ".trk": open_trk,
    ".tck": open_tck,
    ".trx": open_trx,
    ".vtk": open_vtk,
}
SUFFIXES = tuple(_OPENERS)

# What damaged files make of NumPy, nibabel and zipfile (found by feeding them some).
_MALFORMED = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def is_tractogram(path: str | Path) -> bool:
    """Whether a file's name has a suffix of a tractogram."""
    return Path(path).suffix.lower() in SUFFIXES


@dataclass(frozen=True, eq=False)
class Tractogram:
    """A tractogram whose header was read.

    Attributes:
        path: its file.
        source: the format's reader.
    """

    path: Path
    source: Source

    @property
    def count(self) -> int | None:
        """Number of streamlines as its header has it; None if it doesn't say."""
        return self.source.count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the per-streamline values that it brings."""
        return self.source.names

    def chunks(self, size: int = CHUNK, finite: bool = True) -> Iterator[Streamlines]:
        """Its streamlines in order, some at a time.

        Args:
            size: about how many points at once.
            finite: whether a point that isn't finite is an error.

        Raises:
            TractogramError: the file is damaged or truncated, or a point isn't finite.
        """
        done = 0
        chunks = self.source.chunks(size)
        while True:
            try:
                chunk = next(chunks, None)
            except TractogramError:
                raise
            except _MALFORMED as error:
                raise TractogramError(self.path, f"can't be read: {say(error)}") from error
            if chunk is None:
                break
            if finite:
                _check_finite(self.path, chunk, done)
            done += len(chunk)
            yield chunk
        if self.count is not None and done != self.count:
            raise TractogramError(
                self.path, f"holds {done} streamlines instead of the {self.count} of its header"
            )

    def read(self, finite: bool = True) -> Streamlines:
        """All its streamlines, points as float32; ``finite`` as for `chunks`."""
        parts = [
            Streamlines(part.points.astype(np.float32, copy=False), part.offsets, part.data)
            for part in self.chunks(finite=finite)
        ]
        return Streamlines.join(parts)


def open_tractogram(path: str | Path) -> Tractogram:
    """Open a tractogram by its suffix and read its header.

    Args:
        path: ``.trk``, ``.tck``, ``.trx`` (a file or a folder) or ``.vtk`` (legacy polydata).

    Raises:
        TractogramError: naming the file and what is wrong with it.
    """
    file = Path(path)
    opener = _OPENERS.get(file.suffix.lower())
    if opener is None:
        raise TractogramError(file, f"is no tractogram: its suffix must be {', '.join(SUFFIXES)}")
    if not file.exists():
        what = "is a broken link" if file.is_symlink() else "does not exist"
        raise TractogramError(file, what)
    try:
        if not (file.is_dir() and file.suffix.lower() == ".trx"):
            check_file(file)
        return Tractogram(file, opener(file))
    except TractogramError:
        raise
    except FileError as error:
        raise TractogramError(error.path, error.reason) from error
    except _MALFORMED as error:
        raise TractogramError(file, f"can't be read: {say(error)}") from error


def _check_finite(path: Path, chunk: Streamlines, before: int) -> None:
    # A sum over everything is the cheapest question; only a wrong answer is looked into.
    if np.isfinite(chunk.points.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(chunk.points).all(axis=1))
    if len(bad):
        first = before + int(np.searchsorted(chunk.offsets, bad[0], side="right")) - 1
        raise TractogramError(
            path, f"has points that are not finite, the first in streamline {first} (from 0 on)"
        )
