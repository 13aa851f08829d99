"""The Jacobian determinant of a field, and the check that it folds nowhere."""

from __future__ import annotations

import itertools

import torch

__all__ = ["jacobian_determinant", "jacobian_summary", "smallest_corner_determinant"]


def _determinant(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Determinant of a 2x2 or 3x3 matrix of volumes."""
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """det(d(x + u(x)) / dx) by central differences (one-sided at the border), full resolution.

    In world units the matrix is A (I + du/dx) A^-1, A the affine's 3x3 part: the determinant is
    the same in voxels and in millimetres.

    Args:
        displacement: ``(d, *shape)`` in voxels.

    Returns:
        ``(*shape)``.
    """
    d = displacement.shape[0]
    rows = []
    for i in range(d):
        gradients = torch.gradient(displacement[i])
        rows.append([g + 1.0 if i == j else g for j, g in enumerate(gradients)])
    return _determinant(rows)


def smallest_corner_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Smallest determinant among the corners of each cell of the grid.

    Between grid points the field is linear in each coordinate. At a cell's corner its derivative
    is the plain difference along the three edges that meet there. Central differences, spanning
    two voxels, can miss a fold of one voxel (a checkerboard is invisible to them); these can't.

    Args:
        displacement: ``(d, *shape)`` in voxels.

    Returns:
        one number a cell, ``(*(n - 1 for n in shape))``.
    """
    d, *shape = displacement.shape
    edges = [displacement.diff(dim=1 + axis) for axis in range(d)]
    smallest: torch.Tensor | None = None
    for corner in itertools.product((0, 1), repeat=d):
        columns = []
        for axis in range(d):
            edge = edges[axis]
            for other in range(d):
                if other != axis:
                    edge = edge.narrow(1 + other, corner[other], shape[other] - 1)
            columns.append(edge)
        rows = [
            [columns[j][i] + 1.0 if i == j else columns[j][i] for j in range(d)] for i in range(d)
        ]
        det = _determinant(rows)
        smallest = det if smallest is None else torch.minimum(smallest, det)
    assert smallest is not None
    return smallest


def jacobian_summary(displacement: torch.Tensor) -> dict[str, float]:
    """What ``jacobian.json`` says of one field.

    Returns:
        ``min`` and ``share_folded`` (share of voxels with det <= 0) by central differences,
        ``corner_min`` and ``corner_share_folded`` over the cells' corners.
    """
    det = jacobian_determinant(displacement)
    corner = smallest_corner_determinant(displacement)
    return {
        "min": float(det.min()),
        "share_folded": float((det <= 0).double().mean()),
        "corner_min": float(corner.min()),
        "corner_share_folded": float((corner <= 0).double().mean()),
    }
