"""Label maps of many subjects in one space: the probability of each label, and the majority.

A label map is no quantity that could be interpolated, but the presence of one label is. Each voxel
of the common space lies between 2^d voxels of a subject, and each of these gives its label the
weight of linear interpolation. Weights are whole numbers, so that sums don't depend on the order
of the subjects, and one subject can be subtracted again exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.ndimage import find_objects, map_coordinates

from scripts.spatial.grid import CropBox
from scripts.spatial.volume_series import label_type

__all__ = ["LabelShares", "LabelSums", "MostProbable", "label_shares"]

SCALE = 1 << 15
"""Weight of one subject in one voxel."""

LabelShares = dict[int, tuple[CropBox, np.ndarray]]
"""By label: the box that contains it, and its weights there, int32."""


def label_shares(labels: np.ndarray, displacement: np.ndarray) -> LabelShares:
    """The weights of one subject's labels in the common space.

    Args:
        labels: ``(*shape)`` whole numbers on the subject's grid, 0 for background.
        displacement: ``(d, *shape)`` in voxels: the common space's voxel x shows the subject's
            ``x + displacement(x)``. Outside the subject's grid is background.
    """
    shape, d = labels.shape, labels.ndim
    names, dense = np.unique(labels, return_inverse=True)
    # Numbered from 1; background is 0 as well as what lies outside.
    numbers = np.arange(1, len(names) + 1, dtype=np.int32)
    numbers[names == 0] = 0
    dense = np.ascontiguousarray(numbers[dense.reshape(shape)])
    if not dense.any():
        return {}
    places = np.stack([u + index for u, index in zip(displacement, np.indices(shape), strict=True)])
    base = np.floor(places).astype(np.int32)
    parts = (places - base).astype(np.float32)
    corners = []
    for corner in itertools.product((0, 1), repeat=d):
        weight: np.ndarray = np.ones(shape, dtype=np.float32)
        inside = np.ones(shape, dtype=bool)
        index = []
        for axis, up in enumerate(corner):
            weight *= parts[axis] if up else 1 - parts[axis]
            at = base[axis] + up
            inside &= (at >= 0) & (at < shape[axis])
            index.append(np.clip(at, 0, shape[axis] - 1))
        at_corner = np.where(inside, dense[tuple(index)], 0)
        corners.append((at_corner, np.rint(weight * SCALE).astype(np.int32)))
    boxes = [find_objects(labels, max_label=len(names)) for labels, _ in corners]
    shares: LabelShares = {}
    for number, name in enumerate(names.tolist(), start=1):
        boxes_of_name = [
            CropBox(tuple(s.start for s in one[number - 1]), tuple(s.stop for s in one[number - 1]))
            for one in boxes
            if one[number - 1] is not None
        ]
        if name == 0 or not boxes_of_name:
            continue
        box = boxes_of_name[0]
        for other in boxes_of_name[1:]:
            box = box.union(other)
        total = np.zeros(box.shape, dtype=np.int32)
        for numbered, part in corners:
            total += np.where(box.crop(numbered) == number, box.crop(part), 0)
        if total.any():
            shares[int(name)] = (box, total)
    return shares


class LabelSums:
    """Sums of the weights of several subjects.

    Memory is that of the labels' boxes, whatever the number of subjects.

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
        for label, (box, weights) in shares.items():
            self._add(label, box, weights if sign > 0 else -weights)
            self.counts[label] = self.counts.get(label, 0) + sign

    def merge(self, other: LabelSums) -> None:
        """Add the sums of other subjects."""
        self.subjects += other.subjects
        for label, (box, weights) in other.shares.items():
            self._add(label, box, weights)
            self.counts[label] = self.counts.get(label, 0) + other.counts[label]

    @property
    def labels(self) -> list[int]:
        """Every label that a subject has, ascending, without background."""
        return sorted(label for label, count in self.counts.items() if count)

    def probability(self, label: int) -> np.ndarray:
        """Share of the subjects with a label at each voxel, float32 ``(*shape)``."""
        box, weights = self.shares[label]
        share = (weights / (self.subjects * SCALE)).astype(np.float32)
        return box.paste(np.clip(share, 0, 1), self.shape)

    def majority(self) -> np.ndarray:
        """The most probable label of each voxel; of equal ones the smallest, background first."""
        best = MostProbable(self.shape)
        for label, box, share in self._each():
            best.add(label, box, share)
        return best.labels()

    def majority_at(self, places: np.ndarray) -> np.ndarray:
        """The most probable label at points between voxels.

        Args:
            places: ``(d, *wanted)``, voxels of this grid.

        Returns:
            ``(*wanted)``.
        """
        best = MostProbable(places.shape[1:])
        for label, box, share in self._each():
            best.add_at(label, box, share, places)
        return best.labels()

    def _each(self) -> Iterator[tuple[int, CropBox, np.ndarray]]:
        for label in self.labels:
            box, weights = self.shares[label]
            yield label, box, weights / (self.subjects * SCALE)

    def _add(self, label: int, box: CropBox, weights: np.ndarray) -> None:
        known = self.shares.get(label)
        if known is None:
            self.shares[label] = (box, weights.copy())
            return
        union = known[0].union(box)
        total = known[1]
        if union != known[0]:
            total = known[0].within(union).paste(total, union.shape)
        box.within(union).crop(total)[...] += weights
        self.shares[label] = (union, total)


class MostProbable:
    """The most probable label of each voxel, from one label's probabilities after another.

    Args:
        shape: of the result.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rest = np.ones(shape)  # probability of the background
        self.best = np.zeros(shape)
        self.which = np.zeros(shape, dtype=np.int64)

    def add(self, label: int, box: CropBox, share: np.ndarray) -> None:
        """Add a label with its probability in a box; labels must come in ascending order."""
        box.crop(self.rest)[...] -= share
        better = share > box.crop(self.best) + _EQUAL
        box.crop(self.best)[better] = share[better]
        box.crop(self.which)[better] = label

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
        near = np.ones(self.rest.shape, dtype=bool)
        for x, start, stop in zip(places, box.start, box.stop, strict=True):
            near &= (x > start - 1) & (x < stop)
        first = np.array(box.start)[:, None]
        result = np.zeros(self.rest.shape)
        result[near] = map_coordinates(
            share, places[:, near] - first, order=1, mode="grid-constant"
        )
        self.add(label, CropBox((0,) * result.ndim, result.shape), result)
        return result

    def labels(self) -> np.ndarray:
        """The labels, in a type that every tool reads."""
        result = np.where(self.best > self.rest + _EQUAL, self.which, 0)
        return result.astype(label_type(int(np.abs(result).max(initial=0))))


_EQUAL = 1e-4  # probabilities closer than this are equal: weights are rounded


def fused(maps: Iterable[np.ndarray], shape: tuple[int, ...]) -> LabelSums:
    """Sums of label maps that lie in the common space already."""
    sums = LabelSums(shape)
    still = np.zeros((len(shape), *shape))
    for labels in maps:
        sums.add(label_shares(labels, still))
    return sums
