"""Tractograms as files: opened by their ending, read piece by piece.

TRK, TCK, TRX and (legacy) VTK, packed with gzip or not. Whatever the format, points come as world
millimetres (RAS).
"""

from __future__ import annotations

import gzip
import logging
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.runtime.file_names import FOREIGN, TRACTOGRAMS, ending_of, is_tractogram_name
from scripts.runtime.gzip_files import DAMAGED_GZIP, GZIP_START, GzipFile
from scripts.runtime.input_files import FileError, check_file, say
from scripts.tractograms.arrays import ARRAY, open_array
from scripts.tractograms.source import Source
from scripts.tractograms.streamlines import Streamlines, TractogramError
from scripts.tractograms.tck import open_tck
from scripts.tractograms.trk import open_trk
from scripts.tractograms.trx import open_trx
from scripts.tractograms.vtk import open_vtk

__all__ = ["CHUNK", "SUFFIXES", "Tractogram", "is_tractogram", "open_tractogram", "streamlines_of"]

logger = logging.getLogger(__name__)

CHUNK = 1 << 17
"""Points held in memory at once, unless a single streamline has more."""

_OPENERS: dict[str, Callable[[Path, Path], Source]] = {
    ".trk": open_trk,
    ".tck": open_tck,
    ".trx": open_trx,
    ".vtk": open_vtk,
    ".fib": open_vtk,
    ARRAY: open_array,
}
SUFFIXES = (".trk", ".tck", ".trx", ".vtk")
"""Formats of tractograms; arrays (`ARRAY`) are read and written besides."""

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

# Errors of damaged files, without those of the disk.
_NO_GZIP: tuple[type[Exception], ...] = (
    gzip.BadGzipFile,
    *(kind for kind in DAMAGED_GZIP if kind is not OSError),
)


def is_tractogram(path: str | Path) -> bool:
    """Whether a file name ends as a tractogram's."""
    return is_tractogram_name(path)


@dataclass(frozen=True, eq=False)
class Tractogram:
    """A tractogram whose header has been read.

    Attributes:
        path: its file.
        source: the format's reader.
        unpacked: temporary file of one that is packed; it goes with this object.
    """

    path: Path
    source: Source
    unpacked: Any = None

    @property
    def count(self) -> int | None:
        """Number of streamlines in the header; None if it isn't recorded."""
        return self.source.count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the per-streamline values in the file."""
        return self.source.names

    def chunks(
        self, size: int = CHUNK, finite: bool = True, per_point: bool = False
    ) -> Iterator[Streamlines]:
        """Its streamlines in order, some at a time.

        Args:
            size: approximate number of points per part.
            finite: whether a point that isn't finite is an error.
            per_point: whether its per-point values are wanted as well.

        Raises:
            TractogramError: the file is damaged or truncated, or a point isn't finite.
        """
        done = 0
        chunks = self.source.chunks(size, per_point)
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
        if self.source.exact and self.count is not None and done != self.count:
            raise TractogramError(
                self.path, f"contains {done} streamlines, its header says {self.count}"
            )

    def groups(self) -> dict[str, np.ndarray]:
        """Numbers of streamlines by the name of their group, int64; empty without groups.

        Raises:
            TractogramError: the file is damaged, or a group has a streamline that isn't there.
        """
        try:
            groups = self.source.groups()
        except TractogramError:
            raise
        except _MALFORMED as error:
            raise TractogramError(self.path, f"can't be read: {say(error)}") from error
        for name, numbers in groups.items():
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < (self.count or 0):
                raise TractogramError(
                    self.path,
                    f"can't be read: group {name} has a streamline that the file doesn't have",
                )
        return groups

    def read(self, finite: bool = True, per_point: bool = False) -> Streamlines:
        """All its streamlines, points as float32; the arguments are those of `chunks`."""
        parts = [
            replace(part, points=part.points.astype(np.float32, copy=False))
            for part in self.chunks(finite=finite, per_point=per_point)
        ]
        return Streamlines.join(parts)


def open_tractogram(path: str | Path, vtk_space: str = "auto") -> Tractogram:
    """Open a tractogram by its ending and read its header.

    A packed one is unpacked into a temporary file first.

    Args:
        path: ``.trk``, ``.tck``, ``.vtk`` or ``.fib`` (legacy polydata), each with or without
            ``.gz``; ``.trx`` (a file or a folder); ``.npy``, see `open_array`.
        vtk_space: of points in VTK files: ``ras``, ``lps`` or ``auto``, see `open_vtk`.

    Raises:
        TractogramError: the file can't be used; the message names it and the reason.
    """
    file = Path(path)
    ending = ARRAY if file.name.lower().endswith(ARRAY) else ending_of(file)
    if ending not in (*TRACTOGRAMS, ARRAY):
        what = f" but {FOREIGN[ending]}" if ending in FOREIGN else ""
        known = ", ".join((*TRACTOGRAMS, ARRAY))
        raise TractogramError(file, f"not a tractogram{what}: its suffix must be {known}")
    if not file.exists():
        what = "is a broken link" if file.is_symlink() else "does not exist"
        raise TractogramError(file, what)
    opener = _OPENERS[ending.removesuffix(".gz")]
    if opener is open_vtk:
        opener = partial(open_vtk, space=vtk_space)
    try:
        unpacked = None
        if not (file.is_dir() and ending == ".trx"):
            check_file(file)
            unpacked = _unpacked(file, ending)
        read = file if unpacked is None else Path(unpacked.name)
        return Tractogram(file, opener(read, file), unpacked)
    except TractogramError:
        raise
    except FileError as error:
        raise TractogramError(error.path, error.reason) from error
    except _MALFORMED as error:
        raise TractogramError(file, f"can't be read: {say(error)}") from error


def streamlines_of(source: str | Path | Sequence[np.ndarray]) -> Streamlines:
    """All streamlines of a file, or of arrays.

    Args:
        source: a tractogram's path, or arrays ``(points, 3)`` in RAS mm.

    Raises:
        TractogramError: the file can't be used.
    """
    if isinstance(source, str | Path):
        return open_tractogram(source).read(finite=False)
    return Streamlines.of(source)


def _unpacked(path: Path, ending: str) -> Any:
    """A temporary file with the content of a packed one; None if the file isn't packed.

    Raises:
        TractogramError: it is damaged, or doesn't fit on the disk.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start != GZIP_START:
        if ending.endswith(".gz") and start:
            logger.warning("%s: is not packed, despite its name", path)
        return None
    # Open as long as the tractogram exists; removed with it.
    unpacked = tempfile.NamedTemporaryFile(suffix=ending.removesuffix(".gz"))  # noqa: SIM115
    try:
        with GzipFile(path) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.flush()
    except _NO_GZIP as error:
        unpacked.close()
        raise TractogramError(path, f"can't be read: damaged gzip ({say(error)})") from error
    except OSError as error:
        unpacked.close()
        raise TractogramError(
            path, f"can't be unpacked into {tempfile.gettempdir()}: {say(error)}; set TMPDIR"
        ) from error
    return unpacked


def _check_finite(path: Path, chunk: Streamlines, before: int) -> None:
    # A sum over all points is the cheapest check; only a bad result is examined further.
    if np.isfinite(chunk.points.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(chunk.points).all(axis=1))
    if len(bad):
        first = before + int(np.searchsorted(chunk.offsets, bad[0], side="right")) - 1
        raise TractogramError(
            path,
            f"has points that are not finite, first in streamline {first} (counted from 0); write "
            "the file again without these streamlines",
        )
