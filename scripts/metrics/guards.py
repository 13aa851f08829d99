"""Guards: numbers that show whether the fields of an atlas can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

FloatArray = NDArray[np.floating]


def inflation(determinants: FloatArray, mask: NDArray[np.bool_]) -> float:
    """How much larger tracts are in template space than in the subjects: exp(-mean ln det J).

    Args:
        determinants: det J (..., X, Y, Z) of the displacements template -> subject, one or several
            subjects.
        mask: tract (X, Y, Z) in template space.

    Returns:
        1 without inflation; should lie in [0.8, 1.25].

    Raises:
        ValueError: the mask is empty or of another shape, or a determinant inside it is <= 0.
    """
    if determinants.shape[-mask.ndim :] != mask.shape:
        raise ValueError(f"determinants {determinants.shape} and mask {mask.shape} don't match")
    inside = determinants[..., mask].astype(np.float64)
    if inside.size == 0:
        raise ValueError("inflation needs a mask with at least one voxel")
    if inside.min() <= 0:
        raise ValueError(f"inflation isn't defined where a field folds (det J {inside.min():.3g})")
    return float(np.exp(-np.log(inside).mean()))


def centrality(
    displacements: Sequence[FloatArray] | FloatArray, mask: NDArray[np.bool_] | None = None
) -> float:
    """R.m.s. length of the cohort's mean displacement over a mask, in the unit of the
    displacements.

    Args:
        displacements: one field (d, ...) per subject, all on the template grid.
        mask: voxels that count (default: all).
    """
    mean = np.mean(np.stack(list(displacements)), axis=0, dtype=np.float64)
    square = (mean**2).sum(0)
    return float(np.sqrt((square if mask is None else square[mask]).mean()))


def inverse_consistency(
    forward: FloatArray, inverse: FloatArray, mask: NDArray[np.bool_] | None = None
) -> float:
    """R.m.s. distance, in voxels, between a point and where the two fields take it back to.

    r(x) = u(x) + v(x + u(x)), interpolated linearly.

    Args:
        forward: displacement u (d, ...) in voxels, on the grid of x.
        inverse: displacement v (d, ...) in voxels, on the grid of x + u(x).
        mask: points x that count (default: those that u keeps inside the volume).
    """
    shape = forward.shape[1:]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    moved = grid + forward
    if mask is None:
        inside = [(t >= 0) & (t <= n - 1) for t, n in zip(moved, inverse.shape[1:], strict=True)]
        mask = np.all(inside, axis=0)
    points = moved[:, mask]
    back = [map_coordinates(part, points, order=1, mode="nearest") for part in inverse]
    rest = np.stack([u[mask] for u in forward]) + np.stack(back)
    return float(np.sqrt((rest**2).sum(0).mean()))
