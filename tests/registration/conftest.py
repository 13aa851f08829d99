"""A small object without symmetry, sampled on any grid from a formula: no interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from scripts.registration.images import WorldImage

# Centre (mm), radii (mm) and height of each bump.
_BUMPS = (
    ((0, 0, 0), (8, 5, 4), 1.0),
    ((8, 3, 2), (3, 3, 4), 0.9),
    ((-7, 5, -1), (4, 3, 3), 0.7),
    ((-2, -6, 4), (3, 3, 3), 1.1),
    ((4, -4, -5), (5, 3, 3), 0.8),
)

Sampler = Callable[..., WorldImage]


def _density(points: np.ndarray, d: int) -> np.ndarray:
    total = np.zeros(points.shape[1])
    for centre, radii, height in _BUMPS:
        away = (points - np.array(centre)[:, None])[:d] / np.array(radii, dtype=float)[:d, None]
        total += height * np.exp(-(away**2).sum(0))
    return total


@pytest.fixture(scope="session")
def bumps() -> Sampler:
    """``bumps(affine, shape, matrix)``: the object seen through ``matrix`` on a grid."""

    def sample(
        affine: np.ndarray, shape: Sequence[int], matrix: np.ndarray | None = None
    ) -> WorldImage:
        d = len(shape)
        indices = np.zeros((3, int(np.prod(shape))))
        indices[:d] = np.mgrid[tuple(slice(n) for n in shape)].reshape(d, -1)
        points = affine[:3, :3] @ indices + affine[:3, 3:]
        if matrix is not None:
            points = matrix[:3, :3] @ points + matrix[:3, 3:]
        values = _density(points, d).reshape(1, 1, *shape)
        return WorldImage(torch.as_tensor(values, dtype=torch.float32), affine)

    return sample


def centred_affine(spacing: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """An affine whose middle is the world's origin."""
    affine = np.diag([*[*spacing, 1.0][:3], 1.0])
    d = len(shape)
    affine[:d, 3] = -(np.array(shape) - 1) / 2 * np.array(spacing)[:d]
    return affine


@pytest.fixture(scope="session")
def fixed_grid() -> tuple[np.ndarray, tuple[int, ...]]:
    """Anisotropic, not a cube, about the origin."""
    shape = (24, 20, 14)
    return centred_affine((1.6, 1.6, 2.4), shape), shape


@pytest.fixture(scope="session")
def moving_grid() -> tuple[np.ndarray, tuple[int, ...]]:
    """Oblique, of other voxels and another origin."""
    shape = (20, 24, 22)
    affine = centred_affine((2.2, 1.8, 1.7), shape)
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ affine
    affine[:3, 3] += (1.0, -2.0, 1.5)
    return affine, shape
