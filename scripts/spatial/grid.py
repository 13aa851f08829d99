"""The grid that a cohort shares, and the bounding box of its support."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import nibabel as nib
import numpy as np

__all__ = ["TOLERANCE", "CropBox", "Grid", "StorageOrder"]

TOLERANCE = 1e-2
"""Largest distance between corners of two equal grids, voxels, because headers are rounded."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The positions of the voxels of a map in the world.

    Attributes:
        shape: numbers of voxels, ``(X, Y, Z)`` or ``(X, Y)``.
        affine: ``(4, 4)``, voxel indices to world millimetres (RAS).
        header: NIfTI header of the grid; outputs take their codes and units from it.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis, mm."""
        norms = np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0)
        return tuple(float(norm) for norm in norms)

    def same_as(self, other: Grid, tolerance: float = TOLERANCE) -> str | None:
        """Compare with another grid.

        Args:
            other: the grid to compare with.
            tolerance: greatest distance, in voxels of this grid, between equal corners.

        Returns:
            None for the same grid, else the difference, as ``<this> against <other>``.
        """
        if self.shape != other.shape:
            return f"shape {_by(self.shape)} against {_by(other.shape)}"
        ends = [(0, max(n - 1, 1)) for n in (*self.shape, 1, 1)[:3]]
        corners = np.array([(*corner, 1.0) for corner in itertools.product(*ends)]).T
        apart = np.linalg.solve(self.affine, other.affine @ corners) - corners
        distance = float(np.linalg.norm(apart[:3], axis=0).max())
        if distance <= tolerance:
            return None
        return f"{self._difference(other)} (corners up to {distance:.4g} voxels apart)"

    def order_onto(self, other: Grid, tolerance: float = TOLERANCE) -> StorageOrder | None:
        """How an array on this grid is stored on another one with the same voxels.

        Args:
            other: the other grid.
            tolerance: as for `same_as`.

        Returns:
            None if the grids have different voxels.
        """
        d = len(self.shape)
        if len(other.shape) != d:
            return None
        steps = np.linalg.solve(self.affine, other.affine)[:3, :3]
        axes = tuple(int(axis) for axis in np.abs(steps).argmax(axis=0))
        if sorted(axes) != [0, 1, 2] or axes[d:] != (0, 1, 2)[d:]:
            return None
        flips = tuple(bool(steps[axis, new] < 0) for new, axis in enumerate(axes))
        if any(flips[d:]):
            return None
        order = StorageOrder(axes[:d], flips[:d])
        return order if order.of_grid(self).same_as(other, tolerance) is None else None

    def in_order_of(
        self, other: Grid, array: np.ndarray, tolerance: float = TOLERANCE
    ) -> np.ndarray | None:
        """An array ``(..., *shape)`` in the axis order of another grid of the same voxels.

        Args:
            other: the other grid.
            array: values on this grid.
            tolerance: as for `same_as`.

        Returns:
            A view; None if the other grid has other voxels.
        """
        if self.same_as(other, tolerance) is None:
            return array
        order = self.order_onto(other, tolerance)
        return None if order is None else order.of_array(array)

    def _difference(self, other: Grid) -> str:
        """Describe the two common differences of affines; any other by the matrices."""
        ours, theirs = self.affine[:3, :3], other.affine[:3, :3]
        scale = 1e-6 * float(np.abs(ours).max())
        if np.allclose(ours, theirs, rtol=0, atol=scale):
            shift = ", ".join(f"{d:g}" for d in self.affine[:3, 3] - other.affine[:3, 3])
            return f"affine shifted by ({shift}) mm"
        if np.allclose(np.abs(ours), np.abs(theirs), rtol=0, atol=scale):
            flipped = [
                axis
                for axis in range(3)
                if np.allclose(ours[:, axis], -theirs[:, axis], rtol=0, atol=scale)
            ]
            if flipped:
                return f"affine flipped along axis {', '.join(map(str, flipped))}"
        return f"affine {_rows(self.affine)} against {_rows(other.affine)}"

    def as_dict(self) -> dict[str, Any]:
        """Shape, affine and spacing as plain JSON values."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "spacing_mm": list(self.spacing),
        }


@dataclass(frozen=True)
class StorageOrder:
    """An order of axes, some of them reversed; nothing is interpolated.

    Example:
        >>> order = StorageOrder((1, 0), (False, True))
        >>> order.of_array(np.array([[1, 2], [3, 4], [5, 6]])).tolist()
        [[5, 3, 1], [6, 4, 2]]

    Attributes:
        axes: the old axis that each new axis is.
        flips: whether each new axis runs the other way.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def of_array(self, array: np.ndarray) -> np.ndarray:
        """An array ``(..., *spatial)`` in the new order, as a view."""
        lead = array.ndim - len(self.axes)
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.flip(turned, tuple(lead + new for new, flip in enumerate(self.flips) if flip))

    def of_box(self, box: CropBox, shape: tuple[int, ...]) -> CropBox:
        """A box of an array of ``shape``, in the new order."""
        ends = [
            (shape[axis] - box.stop[axis], shape[axis] - box.start[axis])
            if flip
            else (box.start[axis], box.stop[axis])
            for axis, flip in zip(self.axes, self.flips, strict=True)
        ]
        return CropBox(tuple(start for start, _ in ends), tuple(stop for _, stop in ends))

    def of_grid(self, grid: Grid) -> Grid:
        """The grid of an array in the new order."""
        d = len(self.axes)
        turned = np.eye(4)
        turned[:d, :d] = 0
        for new, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            turned[axis, new] = -1 if flip else 1
            turned[axis, 3] = grid.shape[axis] - 1 if flip else 0
        shape = tuple(grid.shape[axis] for axis in self.axes)
        return Grid(shape, grid.affine @ turned, grid.header)

    def then(self, other: StorageOrder) -> StorageOrder:
        """One order for this one and another after it."""
        return StorageOrder(
            tuple(self.axes[axis] for axis in other.axes),
            tuple(
                self.flips[axis] != flip for axis, flip in zip(other.axes, other.flips, strict=True)
            ),
        )

    def as_list(self) -> list[int]:
        """Plain numbers, one a new axis: 1 + the old axis, negative where it runs backwards."""
        pairs = zip(self.axes, self.flips, strict=True)
        return [-(axis + 1) if flip else axis + 1 for axis, flip in pairs]

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> Self:
        """What `as_list` gave."""
        return cls(
            tuple(abs(number) - 1 for number in numbers), tuple(number < 0 for number in numbers)
        )


@dataclass(frozen=True)
class CropBox:
    """A box of voxels; ``start`` is included, ``stop`` isn't.

    Example:
        >>> box = CropBox((1, 0), (3, 2))
        >>> box.shape
        (2, 2)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def around(cls, support: np.ndarray) -> Self:
        """Smallest box that contains all true voxels of ``support``.

        Args:
            support: boolean, ``spatial shape``, with at least one true voxel.
        """
        start, stop = [], []
        for axis in range(support.ndim):
            others = tuple(other for other in range(support.ndim) if other != axis)
            (filled,) = np.nonzero(support.any(axis=others))
            start.append(int(filled[0]))
            stop.append(int(filled[-1]) + 1)
        return cls(tuple(start), tuple(stop))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the box into the spatial axes of an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def crop(self, array: Any) -> Any:
        """Crop ``(..., *spatial)``, array or tensor, to the box, as a view."""
        return array[(..., *self.slices)]

    def paste(self, array: np.ndarray, shape: tuple[int, ...], fill: float = 0) -> np.ndarray:
        """Put ``(..., *box shape)`` into an array ``(..., *shape)`` filled with ``fill``."""
        lead = array.shape[: array.ndim - len(shape)]
        whole = np.full((*lead, *shape), fill, dtype=array.dtype)
        self.crop(whole)[...] = array
        return whole

    def union(self, other: CropBox) -> CropBox:
        """Smallest box that contains both."""
        return CropBox(
            tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop))
        )

    def grown(self, margin: int, shape: tuple[int, ...]) -> CropBox:
        """The box with ``margin`` more voxels on every side, limited to ``shape``."""
        return CropBox(
            tuple(max(0, start - margin) for start in self.start),
            tuple(min(n, stop + margin) for n, stop in zip(shape, self.stop, strict=True)),
        )

    def within(self, outer: CropBox) -> CropBox:
        """This box in the coordinates of a box around it."""
        return CropBox(
            tuple(a - b for a, b in zip(self.start, outer.start, strict=True)),
            tuple(a - b for a, b in zip(self.stop, outer.start, strict=True)),
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _rows(affine: np.ndarray) -> str:
    rows = (" ".join(f"{value:.6g}" for value in row) for row in affine[:3])
    return f"[{'; '.join(rows)}]"
