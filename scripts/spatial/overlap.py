"""Whether two grids, or a grid and a field, overlap in space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from scripts.spatial.grid import Grid
from scripts.spatial.transforms import (
    AffineTransform,
    ComposedTransform,
    FieldTransform,
    Transform,
)

__all__ = ["extent", "fields_apart", "grids_apart"]

_PLACES = 17  # along an axis, that a grid is looked at in


def grids_apart(one: Grid, other: Grid, transform: Transform | None = None) -> bool:
    """Whether two grids have no point in common.

    Args:
        one: a grid, of which some points are tested.
        other: the other grid.
        transform: maps points of ``one`` to points of ``other``; None: the identity.
    """
    if transform is None or isinstance(transform, AffineTransform):
        back = None if transform is None else ~transform
        if _inside(other, _moved(_places(one), transform)).any():
            return False
        # The tested points of a large grid may miss a small one.
        return not _inside(one, _moved(_places(other), back)).any()
    return not _inside(other, transform.apply(_places(one))).any()


def fields_apart(chain: Sequence[Transform], wanted: Grid) -> list[int]:
    """Indices of the transforms in a chain with a field that no point of a grid reaches.

    Such a field has no effect, because it is 0 outside its grid.

    Args:
        chain: transforms in the order that points pass through them.
        wanted: the grid whose points do.
    """
    points, apart = _places(wanted), []
    for number, transform in enumerate(chain):
        for step in _steps(transform):
            if isinstance(step, FieldTransform) and not _inside(step.grid, points).any():
                apart.append(number)
            points = step.apply(points)
    return apart


def extent(points: np.ndarray) -> str:
    """The bounding box of points ``(N, 3)`` as text, mm."""
    low, high = points.min(axis=0), points.max(axis=0)
    return " x ".join(f"{a:.0f}..{b:.0f}" for a, b in zip(low, high, strict=True)) + " mm"


def _steps(transform: Transform) -> list[Transform]:
    if isinstance(transform, ComposedTransform):
        return [*_steps(transform.inner), *_steps(transform.outer)]
    return [transform]


def _places(grid: Grid) -> np.ndarray:
    """World points ``(3, N)`` all over a grid, its corners among them."""
    axes = [np.unique(np.linspace(0, n - 1, min(n, _PLACES)).round()) for n in (*grid.shape, 1)[:3]]
    voxels = np.array(list(itertools.product(*axes))).T
    return AffineTransform(grid.affine).apply(voxels)


def _moved(points: np.ndarray, transform: Transform | None) -> np.ndarray:
    return points if transform is None else transform.apply(points)


def _inside(grid: Grid, points: np.ndarray) -> np.ndarray:
    voxels = (~AffineTransform(grid.affine)).apply(points)
    ends = np.array((*grid.shape, 1)[:3])[:, None] - 0.5
    if len(grid.shape) == 2 or grid.shape[2] == 1:  # the thickness of a plane means little
        voxels, ends = voxels[:2], ends[:2]
    return np.asarray(((voxels >= -0.5) & (voxels <= ends)).all(axis=0))
