"""Label maps of many subjects in one space: the probability of each label, and the majority.

A label map is not a quantity that could be interpolated, but the presence of one label is. Each
voxel of the common space lies between 2^d voxels of a subject, and each of these gives its label
the weight of linear interpolation. Weights are whole numbers, so that sums don't depend on the
order of the subjects, and one subject can be subtracted again exactly.

Only voxels where a label has weight are kept. Most voxels have one label, so memory is about that
of a few volumes, however many labels there are and however they are spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.ndimage import map_coordinates

from scripts.spatial.grid import CropBox
from scripts.spatial.volume_series import label_type

__all__ = ["LabelShares", "LabelSums", "LabelWeights", "MostProbable", "label_shares"]

SCALE = 1 << 15
"""Weight of one subject in one voxel."""

_SLAB = 1 << 18  # voxels of which all corners are looked at together


@dataclass(frozen=True)
class LabelWeights:
    """The weights of one label, where it has any.

    Attributes:
        index: ``(n,)`` voxels of the grid in C order, ascending.
        weights: ``(n,)`` int32.
    """

    index: np.ndarray
    weights: np.ndarray

    def plus(self, other: LabelWeights, sign: int = 1) -> Self:
        """The sum; voxels that only ``other`` has are added."""
        at = np.searchsorted(self.index, other.index)
        known = at < len(self.index)
        known[known] = self.index[at[known]] == other.index[known]
        total = self.weights.copy()
        total[at[known]] += sign * other.weights[known]
        if known.all():
            return type(self)(self.index, total)
        new, place = ~known, at[~known]
        return type(self)(
            np.insert(self.index, place, other.index[new]),
            np.insert(total, place, sign * other.weights[new]),
        )


LabelShares = dict[int, LabelWeights]
"""The weights of each label."""


def label_shares(labels: np.ndarray, displacement: np.ndarray) -> LabelShares:
    """The weights of one subject's labels in the common space.

    Args:
        labels: ``(*shape)`` whole numbers on the subject's grid, 0 for background.
        displacement: ``(d, *shape)`` in voxels: the common space's voxel x shows the subject's
            ``x + displacement(x)``. Outside the subject's grid is background.
    """
    shape = labels.shape
    names, places = np.unique(labels, return_inverse=True)
    # Numbered from 1; background is 0 as well as what lies outside.
    numbers = np.arange(1, len(names) + 1, dtype=np.int32)
    numbers[names == 0] = 0
    dense = numbers[places.reshape(shape)]
    if not dense.any():
        return {}
    plane = int(np.prod(shape[1:], dtype=int))
    kind = np.int32 if dense.size <= np.iinfo(np.int32).max else np.int64
    parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    rows = max(1, _SLAB // plane)
    for start in range(0, shape[0], rows):
        number, voxel, weight = _weights_of(dense, displacement[:, start : start + rows], start)
        index = (voxel + start * plane).astype(kind)
        ends = [*np.flatnonzero(np.diff(number)) + 1, len(number)] if len(number) else []
        for first, end in zip([0, *ends], ends, strict=False):
            parts.setdefault(int(number[first]), []).append((index[first:end], weight[first:end]))
    return {
        int(names[number - 1]): LabelWeights(*map(np.concatenate, zip(*result, strict=True)))
        for number, result in sorted(parts.items())
    }


def _weights_of(
    dense: np.ndarray, displacement: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, voxel and weight of each label in a slab, sorted by number, then voxel.

    Args:
        dense: ``(*shape)``, numbers of the subject's labels.
        displacement: ``(d, n, *shape[1:])`` of the slab.
        start: first index of the slab along the first axis.

    Returns:
        ``(m,)`` each; voxels are counted from the start of the slab.
    """
    d = dense.ndim
    base, parts = [], []
    for axis, moved in enumerate(displacement):
        along = np.arange(moved.shape[axis]) + (start if axis == 0 else 0)
        place = (moved + along.reshape(-1, *[1] * (d - 1 - axis))).ravel()
        floor = np.floor(place)
        base.append(floor.astype(np.int32))
        parts.append((place - floor).astype(np.float32))
    numbers = np.empty((2**d, len(base[0])), dtype=np.int32)
    weights = np.empty_like(numbers)
    for row, corner in enumerate(itertools.product((0, 1), repeat=d)):
        weight = np.ones(len(base[0]), dtype=np.float32)
        inside = np.ones(len(base[0]), dtype=bool)
        index = []
        for first, part, up, n in zip(base, parts, corner, dense.shape, strict=True):
            weight *= part if up else 1 - part
            at = first + up
            inside &= (at >= 0) & (at < n)
            index.append(np.clip(at, 0, n - 1))
        numbers[row] = np.where(inside, dense[tuple(index)], 0)
        weights[row] = np.rint(weight * SCALE)
        # A label that an earlier corner has is added there.
        for earlier in range(row):
            same = numbers[row] == numbers[earlier]
            weights[earlier] += np.where(same, weights[row], 0)
            numbers[row, same] = 0
    kept, voxel = np.nonzero((numbers != 0) & (weights != 0))
    number, weight = numbers[kept, voxel], weights[kept, voxel]
    order = np.argsort(number.astype(np.int64) * numbers.shape[1] + voxel)
    return number[order], voxel[order], weight[order]


class LabelSums:
    """Sums of the weights of several subjects.

    Memory is that of the voxels where a label has weight, whatever the number of subjects.

    Args:
        shape: of the common grid.

    Example:
        >>> sums = LabelSums((4,))
        >>> for labels in ([0, 7, 7, 0], [0, 7, 0, 0], [0, 7, 9, 0]):
        ...     sums.add(label_shares(np.array(labels), np.zeros((1, 4))))
        >>> sums.majority().tolist(), sums.probability(7).round(2).tolist()
        ([0, 7, 0, 0], [0.0, 1.0, 0.33, 0.0])
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.subjects = 0
        self.shares: LabelShares = {}
        self.counts: dict[int, int] = {}

    def add(self, shares: LabelShares, sign: int = 1) -> None:
        """Add one subject; with sign -1 subtract one that was added."""
        self.subjects += sign
        for label, weights in shares.items():
            self._add(label, weights, sign)
            self.counts[label] = self.counts.get(label, 0) + sign

    def merge(self, other: LabelSums) -> None:
        """Add the sums of other subjects."""
        self.subjects += other.subjects
        for label, weights in other.shares.items():
            self._add(label, weights)
            self.counts[label] = self.counts.get(label, 0) + other.counts[label]

    @property
    def labels(self) -> list[int]:
        """Every label that a subject has, ascending, without background."""
        return sorted(label for label, count in self.counts.items() if count)

    def probability(self, label: int) -> np.ndarray:
        """Share of the subjects with a label at each voxel, float32 ``(*shape)``."""
        index, share = self._share(label)
        result = np.zeros(self.shape, dtype=np.float32)
        result.flat[index] = np.clip(share, 0, 1)
        return result

    def majority(self) -> np.ndarray:
        """The most probable label of each voxel; of equal ones the smallest, background first."""
        best = MostProbable(self.shape)
        for label in self.labels:
            best.add(label, *self._share(label))
        return best.labels()

    def majority_at(self, places: np.ndarray) -> np.ndarray:
        """The most probable label at points between voxels.

        Args:
            places: ``(d, *wanted)``, voxels of this grid.

        Returns:
            ``(*wanted)``.
        """
        best = MostProbable(places.shape[1:])
        points = places.reshape(len(places), -1)
        # A cell lies between 2^d voxels, and the cells at the rim also outside the grid. Points
        # that are not in any cell have the number of one more, which no label touches.
        cells = tuple(n + 1 for n in self.shape)
        cell = np.zeros(points.shape[1], dtype=np.int64)
        inside = np.ones(points.shape[1], dtype=bool)
        for x, n in zip(points, cells, strict=True):
            first = np.floor(x).astype(np.int64) + 1
            inside &= (first >= 0) & (first < n)
            cell = cell * n + np.clip(first, 0, n - 1)
        cell[~inside] = np.prod(cells)
        corners = [
            int(np.ravel_multi_index(corner, cells))
            for corner in itertools.product((0, 1), repeat=len(cells))
        ]
        touched = np.zeros(np.prod(cells) + 1, dtype=bool)
        whole = np.zeros(self.shape)
        for label in self.labels:
            index, share = self._share(label)
            voxels = [x + 1 for x in np.unravel_index(index, self.shape)]
            reached = np.ravel_multi_index(voxels, cells)
            for corner in corners:
                touched[reached - corner] = True
            near = np.flatnonzero(touched[cell])
            whole.flat[index] = share
            nearby = map_coordinates(whole, points[:, near], order=1, mode="grid-constant")
            best.add(label, near, nearby)
            whole.flat[index] = 0
            for corner in corners:
                touched[reached - corner] = False
        return best.labels()

    def _share(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        weights_of_label = self.shares[label]
        return weights_of_label.index, weights_of_label.weights / (self.subjects * SCALE)

    def _add(self, label: int, weights: LabelWeights, sign: int = 1) -> None:
        known = self.shares.get(label)
        if known is None:
            nothing = weights.index[:0]
            known = LabelWeights(nothing, nothing.astype(np.int32))
        self.shares[label] = known.plus(weights, sign)


class MostProbable:
    """The most probable label of each voxel, from one label's probabilities after another.

    Args:
        shape: of the result.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        size = int(np.prod(shape))
        self.rest = np.ones(size)  # probability of the background
        self.best = np.zeros(size)
        self.which = np.zeros(size, dtype=np.int64)

    def add(self, label: int, index: np.ndarray, share: np.ndarray) -> None:
        """Add a label with its probability; labels must come in ascending order.

        Args:
            label: ascending.
            index: ``(n,)``, voxels in C order, each at most once; it is 0 in all others.
            share: ``(n,)``, the probability there.
        """
        self.rest[index] -= share
        better = share > self.best[index] + _EQUAL
        self.best[index[better]] = share[better]
        self.which[index[better]] = label

    def add_at(self, label: int, box: CropBox, share: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Add a label with its probability at points, interpolated linearly; 0 outside the box.

        Args:
            label: ascending.
            box: of ``share`` on its grid.
            share: probability there.
            places: ``(d, *shape)``, voxels of the grid of the box.

        Returns:
            The probability ``(*shape)``.
        """
        near = np.ones(self.shape, dtype=bool)
        for x, start, stop in zip(places, box.start, box.stop, strict=True):
            near &= (x > start - 1) & (x < stop)
        first = np.array(box.start)[:, None]
        nearby = map_coordinates(share, places[:, near] - first, order=1, mode="grid-constant")
        self.add(label, np.flatnonzero(near), nearby)
        result = np.zeros(self.shape)
        result[near] = nearby
        return result

    def labels(self) -> np.ndarray:
        """The labels, in a type that every tool reads."""
        result = np.where(self.best > self.rest + _EQUAL, self.which, 0).reshape(self.shape)
        return result.astype(label_type(int(np.abs(result).max(initial=0))))


_EQUAL = 1e-4  # probabilities closer than this are equal: weights are rounded


def fused(maps: Iterable[np.ndarray], shape: tuple[int, ...]) -> LabelSums:
    """Sums of label maps that lie in the common space already."""
    sums = LabelSums(shape)
    still = np.zeros((len(shape), *shape))
    for labels in maps:
        sums.add(label_shares(labels, still))
    return sums
