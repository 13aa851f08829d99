"""Images with their place in the world, and their pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scripts.networks.grids import averaged

__all__ = ["WorldImage", "constant_reason", "reduced", "reduction_factors", "spacing_of"]


@dataclass(frozen=True, eq=False)
class WorldImage:
    """An image and where its voxels lie.

    Attributes:
        values: ``(1, C, *shape)`` float32, 2 or 3 axes.
        affine: ``(4, 4)`` float64, voxel to RAS mm.
        inside: ``(1, 1, *shape)``, how much of each voxel was seen, 0 to 1. None: everything,
            and what lies outside of the image is background of value 0.
    """

    values: torch.Tensor
    affine: np.ndarray
    inside: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.values.shape[2:])

    @property
    def spacing(self) -> np.ndarray:
        """Size of a voxel along each axis, mm."""
        return spacing_of(self.affine, len(self.shape))

    def without_background(self) -> WorldImage:
        """The same image, of which nothing is known outside of its grid."""
        return WorldImage(self.values, self.affine, torch.ones_like(self.values[:, :1]))


def spacing_of(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    """Size of a voxel along each axis, mm."""
    return np.linalg.norm(np.asarray(affine)[:3, :spatial_dims], axis=0)


def constant_reason(values: torch.Tensor) -> str | None:
    """Why an image can't be aligned: it isn't finite, or the same everywhere; else None."""
    if not bool(torch.isfinite(values).all()):
        return "holds values that aren't finite"
    low, high = float(values.amin()), float(values.amax())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return f"has the same value everywhere ({low:g}), so that there is nothing to align by"
    return None


def reduction_factors(spacing: Sequence[float] | np.ndarray, size: float) -> tuple[int, ...]:
    """By how much to reduce each axis so that voxels come near ``size`` mm and near cubes."""
    return tuple(max(1, int(np.floor(size / step + 0.5))) for step in spacing)


def reduced(image: WorldImage, factors: Sequence[int]) -> WorldImage:
    """Block means; a block's centre lies at ``f i + (f - 1) / 2`` of the full grid.

    A block that reaches over the border is the mean of what it holds.

    Args:
        image: the full one.
        factors: voxels a block spans along each axis.
    """
    if all(f == 1 for f in factors):
        return image
    factors = [min(f, n) for f, n in zip(factors, image.shape, strict=True)]
    values = averaged(image.values, factors)
    inside = image.inside
    if inside is not None:
        weighted = averaged(image.values * inside, factors)
        inside = averaged(inside, factors)
        values = weighted / inside.clamp_min(1e-6)
    onto = np.eye(4)
    for axis, f in enumerate(factors):
        onto[axis, axis], onto[axis, 3] = f, (f - 1) / 2
    return WorldImage(values, image.affine @ onto, inside)
