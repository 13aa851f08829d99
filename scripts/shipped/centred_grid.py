"""Voxels of a reduced grid, counted from the centre of the full one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.networks.grids import reduced_shape

__all__ = ["centred_grid", "centred_points"]


def centred_grid(shape: Sequence[int], factor: int = 1) -> torch.Tensor:
    """``(4, 4)`` float64: from voxels of a reduced grid to full voxels from the grid's centre."""
    grid = torch.eye(4, dtype=torch.float64)
    for axis, n in enumerate(shape):
        grid[axis, axis] = factor
        grid[axis, 3] = (factor - 1) / 2 - (n - 1) / 2
    return grid


def centred_points(shape: Sequence[int], factor: int = 1) -> torch.Tensor:
    """Centres of a reduced grid's voxels ``(K, 3)`` float64, see `centred_grid`."""
    axes = [torch.arange(n, dtype=torch.float64) for n in reduced_shape(shape, factor)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
    grid = centred_grid(shape, factor)
    return index @ grid[:3, :3].T + grid[:3, 3]
