"""Densities on another grid, as a count of the same streamlines on that grid would give them.

A map counts the streamlines that visit each voxel. How many visit a voxel of another size follows
from its surface: by Cauchy's formula the mean chord of a voxel of volume V and surface S is
4 V / S, so that streamlines of length density d visit it d S / 4 times. Halving the voxels' sides
therefore divides counts by four, not by eight. (The formula averages over directions; a bundle
along an axis of anisotropic voxels differs.)
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.ndimage import affine_transform

from scripts.spatial.grid import Grid

__all__ = ["resample_density", "visits_ratio"]


def visits_ratio(source: np.ndarray, wanted: np.ndarray, dims: int = 3) -> float:
    """How many times as many streamlines visit a voxel of one grid as of another.

    Args:
        source: ``(4, 4)``, voxels to mm, of the grid that was counted on.
        wanted: of the other.
        dims: axes of the grids.

    Example:
        >>> visits_ratio(np.diag([1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1]))
        4.0
    """
    return _surface(wanted, dims) / _surface(source, dims)


def _surface(affine: np.ndarray, dims: int) -> float:
    a, b, c = np.asarray(affine, dtype=np.float64)[:3, :3].T
    if dims == 2:
        return float(np.linalg.norm(a) + np.linalg.norm(b))
    return float(sum(np.linalg.norm(np.cross(u, v)) for u, v in ((a, b), (b, c), (c, a))))


def resample_density(
    density: np.ndarray, affine: np.ndarray, grid: Grid, normalisation: str
) -> np.ndarray:
    """Normalised densities on another grid.

    Each voxel gets the mean over its volume, interpolated linearly, 0 outside of what was imaged;
    then it is scaled as the normalisation scales maps that are counted on the wanted grid.

    Args:
        density: ``(C, *shape)``, already divided as ``normalisation`` says.
        affine: ``(4, 4)`` of its voxels.
        grid: the wanted one, as many axes.
        normalisation: ``streamline_density`` keeps each channel's sum, ``max`` its maximum;
            ``waytotal`` and ``none`` follow `visits_ratio`, except for masks (0 and one value).

    Returns:
        ``(C, *grid.shape)`` float32.
    """
    d = len(grid.shape)
    onto = np.linalg.solve(affine, grid.affine)[:d][:, [*range(d), 3]]
    parts = [max(1, math.ceil(float(np.linalg.norm(step)) - 1e-3)) for step in onto[:, :d].T]
    offsets = [[(i + 0.5) / n - 0.5 for i in range(n)] for n in parts]
    result = np.zeros((len(density), *grid.shape), dtype=np.float32)
    ratio = visits_ratio(affine, grid.affine, d)
    for channel, target in zip(density.astype(np.float64), result, strict=True):
        total = np.zeros(grid.shape)
        for shift in itertools.product(*offsets):
            start = onto[:, d] + onto[:, :d] @ np.array(shift)
            total += affine_transform(
                channel, onto[:, :d], start, grid.shape, order=1, mode="grid-constant"
            )
        total /= math.prod(parts)
        if normalisation == "streamline_density":
            total *= channel.sum() / (total.sum() or 1.0)
        elif normalisation == "max":
            total *= channel.max() / (total.max() or 1.0)
        elif not (normalisation == "none" and len(np.unique(channel)) <= 2):
            total *= ratio
        target[...] = total
    return result
