"""Tractograms as NumPy arrays: ``(streamlines, points, 3)``, world millimetres (RAS)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scripts.errors import ConfigurationError
from scripts.tractograms.source import Source
from scripts.tractograms.streamlines import Streamlines, TractogramError

__all__ = ["ARRAY", "open_array", "write_array"]

ARRAY = ".npy"


def open_array(file: Path, path: Path) -> Source:
    """Open an array of streamlines that all have the same number of points.

    Args:
        file: to read.
        path: that messages name.

    Raises:
        TractogramError: it is no such array.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "object" not in str(error).lower():
            raise
        raise TractogramError(
            path,
            "contains Python objects, which are not read; must be an array of numbers "
            "(streamlines, points, 3): resample the streamlines to one number of points, or save "
            "them as .trk or .tck",
        ) from error
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "fi":
        raise TractogramError(
            path,
            f"is an array {array.shape} of {array.dtype}; must be (streamlines, points, 3) numbers",
        )
    count, points, _ = array.shape

    def chunks(size: int, _: bool) -> Iterator[Streamlines]:
        step = max(1, size // max(1, points))
        for start in range(0, count, step):
            part = np.asarray(array[start : start + step])
            kind = np.float64 if part.dtype.itemsize > 4 else np.float32
            yield Streamlines(
                part.reshape(-1, 3).astype(kind),
                np.arange(len(part) + 1, dtype=np.int64) * points,
            )

    return Source(chunks, count)


def write_array(file: BinaryIO, chunks: Iterable[Streamlines]) -> int:
    """Write streamlines of one number of points as an array, float32.

    Args:
        file: a binary file.
        chunks: streamlines, without values per point.

    Returns:
        The number of streamlines.

    Raises:
        ConfigurationError: they have different numbers of points.
    """
    every = Streamlines.join(chunks)
    lengths = np.unique(every.lengths)
    if len(lengths) > 1:
        raise ConfigurationError(
            f"an array (.npy) needs streamlines with one number of points, these have {lengths[0]} "
            f"to {lengths[-1]}; write .trk, .tck, .trx or .vtk"
        )
    points = int(lengths[0]) if len(lengths) else 0
    np.save(file, every.points.reshape(len(every), points, 3).astype(np.float32))
    return len(every)
