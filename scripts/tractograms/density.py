"""Density maps of tractograms: how many streamlines visit each voxel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from scripts.tractograms.reading import Tractogram
from scripts.tractograms.streamlines import Streamlines
from scripts.tractograms.traversal import visited_voxels
from scripts.tractograms.weights import Weights

__all__ = ["DensityCounter", "Progress", "count_tractogram"]

_BLOCK = 1 << 15  # points: their temporary arrays fit a core's cache

Progress = Callable[[int, int | None], None]
"""Called with the number of streamlines done and their total, None if that isn't known."""


@dataclass
class DensityCounter:
    """Counts streamlines on a grid; memory is that of the grid.

    A streamline adds its weight (1 without weights) once to every voxel that it visits.

    Args:
        shape: of the grid, three axes.
        affine: ``(4, 4)``, voxels to RAS mm.
        ends: count only the voxels of the two ends of each streamline.

    Attributes:
        streamlines: number of streamlines added.
        weight: sum of their weights.
        outside: number of their points outside the grid (with ``ends``: of the ends).
        left: number of streamlines with such a point.
        missed: number of streamlines that visit no voxel of the grid.

    Example:
        >>> counter = DensityCounter((4, 1, 1), np.eye(4))
        >>> counter.add(Streamlines.of([np.array([[0.0, 0, 0], [3, 0, 0]])]))
        >>> counter.density[:, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    ends: bool = False
    streamlines: int = 0
    weight: float = 0.0
    outside: int = 0
    left: int = 0
    missed: int = 0

    def __post_init__(self) -> None:
        # With a border of one voxel, see `Visits`.
        self._total = np.zeros([n + 2 for n in self.shape])

    @property
    def density(self) -> np.ndarray:
        """Sum of weights per voxel, float64, of the grid's shape."""
        return self._total[1:-1, 1:-1, 1:-1]

    def add(self, streamlines: Streamlines, weights: np.ndarray | None = None) -> None:
        """Count streamlines.

        Args:
            streamlines: RAS mm, finite.
            weights: one per streamline, ``(n,)``.
        """
        for start, stop in _blocks(streamlines.offsets):
            offsets = streamlines.offsets[start : stop + 1]
            part = Streamlines(streamlines.points[offsets[0] : offsets[-1]], offsets - offsets[0])
            self._add(part, None if weights is None else weights[start:stop])

    def _add(self, streamlines: Streamlines, weights: np.ndarray | None) -> None:
        visits = visited_voxels(streamlines, self.shape, self.affine, self.ends)
        total = self._total.reshape(-1)
        if weights is None:
            np.add.at(total, visits.voxels, 1.0)
        else:
            np.add.at(total, visits.voxels, weights[visits.streamlines])
        self.streamlines += len(streamlines)
        self.weight += float(len(streamlines) if weights is None else weights.sum())
        self.outside += visits.outside
        self.left += visits.left
        if visits.left or (streamlines.lengths == 0).any():
            self.missed += self._count_missed(len(streamlines), visits.streamlines, visits.voxels)

    def _count_missed(self, n: int, who: np.ndarray, voxels: np.ndarray) -> int:
        x, y, z = np.unravel_index(voxels, self._total.shape)
        inside = np.ones(len(voxels), dtype=bool)
        for index, size in zip((x, y, z), self._total.shape, strict=True):
            inside &= (index > 0) & (index < size - 1)
        return n - len(np.unique(who[inside]))


def _blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive blocks of streamlines of about `_BLOCK` points each."""
    start, n = 0, len(offsets) - 1
    while start < n:
        stop = int(np.searchsorted(offsets, offsets[start] + _BLOCK, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield start, stop
        start = stop


def count_tractogram(
    counter: DensityCounter,
    tractogram: Tractogram,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> None:
    """Add a whole tractogram, some streamlines at a time.

    Args:
        counter: where they are added.
        tractogram: an opened tractogram.
        weights: of its streamlines; None: 1 for each.
        progress: called after each part.

    Raises:
        TractogramError: the tractogram or its weights can't be used.
    """
    chunks: Iterable[Streamlines] = tractogram.chunks()
    done = 0
    for chunk in chunks:
        counter.add(chunk, None if weights is None else weights.of(chunk, done))
        done += len(chunk)
        if progress is not None:
            progress(done, tractogram.count)
    if weights is not None:
        weights.check_all_used(done)
