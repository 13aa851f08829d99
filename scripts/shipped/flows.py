"""Random smooth deformations that are known exactly: flows of stationary velocities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scripts.shipped.noise import Lengths, smooth_noise

__all__ = ["random_velocity"]

_NOISES = ((6.0, 0.5), (10.0, 1.0), (16.0, 0.9))
"""(smoothing in voxels, weight) of the noises that a velocity is the sum of."""
_TURN = 0.03  # standard deviation of an affine velocity's entries
_SHIFT = 1.0  # voxels, of its translation


def random_velocity(
    rng: np.random.Generator,
    shape: Sequence[int],
    size: Lengths,
    length: float,
    affine: float = 0.0,
    factor: int = 2,
) -> torch.Tensor:
    """A velocity ``(1, 3, *ceil(shape / factor))`` in voxels of the full grid.

    Args:
        rng: where it comes from.
        shape: of the full grid.
        size: of a voxel along each axis, relative to their geometric mean; the world is isotropic.
        length: r.m.s. of the smooth part, in voxels of the mean size.
        affine: size of a linear part that is added; 0: none, 1: turns and stretches of .03.
        factor: by which the velocity's grid is reduced.
    """
    reduced = [-(-n // factor) for n in shape]
    total = torch.zeros(3, *reduced)
    for sigma, weight in _NOISES:
        widths = [sigma / (s * factor) for s in size]
        total += weight * smooth_noise(rng, 3, reduced, widths)
    total *= length / total.square().sum(0).mean().sqrt().clamp_min(1e-6)
    if affine:
        places = torch.meshgrid(
            *[(torch.arange(m) - (m - 1) / 2) * factor * s
              for m, s in zip(reduced, size, strict=True)],
            indexing="ij",
        )  # fmt: skip
        turn = torch.from_numpy(rng.normal(0, _TURN * affine, (3, 3)).astype(np.float32))
        shift = torch.from_numpy(rng.normal(0, _SHIFT * affine, 3).astype(np.float32))
        total += torch.einsum("ij,jxyz->ixyz", turn, torch.stack(places))
        total += shift.view(3, 1, 1, 1)
    return (total / torch.tensor(size, dtype=torch.float32).view(3, 1, 1, 1))[None]
