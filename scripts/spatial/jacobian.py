"""The Jacobian determinant of a field, and the check for folds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

__all__ = ["jacobian_determinant", "jacobian_summary", "smallest_corner_determinant"]


_SLAB = 1 << 18  # voxels of the field processed at once, so that they stay in the cache


def _cross(b: Sequence[torch.Tensor], c: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Cross product of two vectors of volumes; in 2-D, ``b`` rotated by a right angle."""
    if len(b) == 2:
        return [b[1], -b[0]]
    return [torch.addcmul(b[i] * c[j], b[j], c[i], value=-1) for i, j in ((1, 2), (2, 0), (0, 1))]


def _product(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner product of two vectors of volumes."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total.addcmul_(x, y)
    return total


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """det(d(x + u(x)) / dx) by central differences (one-sided at the border), full resolution.

    In world units the matrix is A (I + du/dx) A^-1 with A the 3x3 part of the affine: the
    determinant is
    the same in voxels and in millimetres.

    Args:
        displacement: ``(d, *shape)`` in voxels.

    Returns:
        ``(*shape)``.
    """
    rows = []
    for i, component in enumerate(displacement):
        row = list(torch.gradient(component))
        row[i] = row[i] + 1.0
        rows.append(row)
    return _product(rows[0], _cross(rows[1], rows[-1]))


def smallest_corner_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Smallest determinant among the corners of each cell of the grid.

    Between grid points the field is linear in each coordinate. At a corner of a cell its derivative
    is the difference along the three edges that meet there. Central differences span two voxels and
    can miss a fold of one voxel (they don't see a checkerboard); the corner differences can't.

    The edges of all axes but the first lie in planes that two layers of cells share, so their
    cross product is computed once for both.

    Args:
        displacement: ``(d, *shape)`` in voxels.

    Returns:
        One number per cell, ``(*(n - 1 for n in shape))``.
    """
    d, *shape = displacement.shape
    edges = []
    for axis in range(d):
        edge = displacement.diff(dim=1 + axis)
        edge[axis] += 1.0
        edges.append(edge)

    def at(axis: int, corner: Sequence[int]) -> Sequence[torch.Tensor]:
        """Edges along an axis that end in this corner of the cells; the first axis isn't
        cropped."""
        edge = edges[axis]
        for other in range(1, d):
            if other != axis:
                edge = edge.narrow(1 + other, corner[other - 1], shape[other] - 1)
        return edge.unbind()

    smallest: torch.Tensor | None = None
    for corner in itertools.product((0, 1), repeat=d - 1):
        first = at(0, corner)
        planes = _cross(at(1, corner), at(d - 1, corner))
        for layer in (0, 1):
            det = _product(first, [p.narrow(0, layer, shape[0] - 1) for p in planes])
            smallest = det if smallest is None else torch.minimum(smallest, det, out=smallest)
    assert smallest is not None
    return smallest


def jacobian_summary(displacement: torch.Tensor) -> dict[str, float]:
    """The entries of ``jacobian.json`` for one field.

    Computed slab by slab along the first axis, which for full-size fields is several times as fast
    as the whole volume at once.

    Returns:
        ``min`` and ``share_folded`` (share of voxels with det <= 0) by central differences,
        ``corner_min`` and ``corner_share_folded`` over the cells' corners.
    """
    n = displacement.shape[1]
    size = max(1, _SLAB // max(1, displacement[0, 0].numel()))
    central, corner = _Determinants(), _Determinants()
    for start in range(0, n, size):
        stop = min(start + size, n)
        before, after = max(0, start - 1), min(n, stop + 1)
        slab = displacement[:, before:after]
        central.add(jacobian_determinant(slab)[start - before : stop - before])
        if after - start > 1:
            corner.add(smallest_corner_determinant(displacement[:, start:after]))
    return {
        "min": central.smallest(),
        "share_folded": central.share_folded(),
        "corner_min": corner.smallest(),
        "corner_share_folded": corner.share_folded(),
    }


class _Determinants:
    """Collects the smallest determinant and the number of folds."""

    def __init__(self) -> None:
        self.least: list[torch.Tensor] = []
        self.folded: list[torch.Tensor] = []
        self.total = 0

    def add(self, determinants: torch.Tensor) -> None:
        """Add the determinants of one slab."""
        self.least.append(determinants.min())  # NaN if any is NaN
        self.folded.append((determinants <= 0).sum())
        self.total += determinants.numel()

    def smallest(self) -> float:
        """Smallest determinant over all slabs."""
        return float(torch.stack(self.least).min())

    def share_folded(self) -> float:
        """Share of determinants <= 0."""
        return float(torch.stack(self.folded).sum()) / self.total
