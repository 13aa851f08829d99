"""The common interface of the readers of all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scripts.tractograms.streamlines import Streamlines

__all__ = ["Source", "counted_records"]


@dataclass(frozen=True, eq=False)
class Source:
    """A tractogram as the reader of its format presents it.

    Attributes:
        chunks: generator of streamlines, RAS mm, given about how many points are wanted at once
            and whether their per-point values are wanted as well.
        count: number of streamlines in the header, None if it isn't recorded.
        exact: whether a file with another number of streamlines is damaged.
        names: of the per-streamline values.
        point_names: of the per-point values.
        shape: of the grid that the header belongs to, None without one.
        affine: ``(4, 4)`` of that grid, voxels to RAS mm.
        groups: numbers of streamlines by the name of their group, read when called.
    """

    chunks: Callable[[int, bool], Iterator[Streamlines]]
    count: int | None = None
    exact: bool = True
    names: tuple[str, ...] = ()
    point_names: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    affine: np.ndarray | None = None
    groups: Callable[[], dict[str, np.ndarray]] = dict


def counted_records(block: np.ndarray, per_item: int, extra: int, most: int) -> np.ndarray:
    """Starts of variable-length records that begin with their size, as in TRK and VTK.

    A record is a number n, followed by n items of ``per_item`` words and ``extra`` words.

    Args:
        block: int32 words; a record starts at the first.
        per_item: words per item.
        extra: words after a record's items.
        most: largest number of records.

    Returns:
        Start of each complete record, and the end of the last one, in words, int64.

    Raises:
        ValueError: a record has a negative size.
    """
    starts = [0]
    at, end, item = 0, len(block), block.item
    while at < end and len(starts) <= most:
        size = item(at)
        if size < 0:
            raise ValueError(f"a streamline has {size} points")
        at += 1 + size * per_item + extra
        if at > end:
            break
        starts.append(at)
    return np.array(starts, dtype=np.int64)
