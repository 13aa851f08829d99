"""Opens tractograms by their suffix and reads them in parts.

TRK, TCK, TRX and (legacy) VTK. In every format, points are world millimetres (RAS).
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
"""Points held in memory at once, unless a single streamline has more."""

_OPENERS: dict[str, Callable[[Path], Source]] = {
    ".trk": open_trk,
    ".tck": open_tck,
    ".trx": open_trx,
    ".vtk": open_vtk,
}
SUFFIXES = tuple(_OPENERS)

# Exceptions that NumPy, nibabel and zipfile raise on damaged files (found by testing with some).
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
    """Whether a file name has a suffix of a tractogram."""
    return Path(path).suffix.lower() in SUFFIXES


@dataclass(frozen=True, eq=False)
class Tractogram:
    """A tractogram whose header has been read.

    Attributes:
        path: of its file.
        source: the reader of its format.
    """

    path: Path
    source: Source

    @property
    def count(self) -> int | None:
        """Number of streamlines in the header; None if it isn't recorded."""
        return self.source.count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the per-streamline values in the file."""
        return self.source.names

    def chunks(self, size: int = CHUNK, finite: bool = True) -> Iterator[Streamlines]:
        """Its streamlines in order, a part at a time.

        Args:
            size: approximate number of points per part.
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
                self.path, f"holds {done} streamlines, its header says {self.count}"
            )

    def read(self, finite: bool = True) -> Streamlines:
        """All streamlines, points as float32; ``finite`` as in `chunks`."""
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
        TractogramError: the file can't be used; the message names it and the reason.
    """
    file = Path(path)
    opener = _OPENERS.get(file.suffix.lower())
    if opener is None:
        raise TractogramError(file, f"not a tractogram: its suffix must be {', '.join(SUFFIXES)}")
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
    # A sum over all points is the cheapest check; only a bad result is examined further.
    if np.isfinite(chunk.points.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(chunk.points).all(axis=1))
    if len(bad):
        first = before + int(np.searchsorted(chunk.offsets, bad[0], side="right")) - 1
        raise TractogramError(
            path, f"has points that are not finite, first in streamline {first} (counted from 0)"
        )
