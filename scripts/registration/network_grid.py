"""The grid of a shipped network for a pair, and images resampled to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scripts.registration.images import WorldImage, reduced, reduction_factors
from scripts.registration.moved import on_grid
from scripts.shipped.centred_grid import centred_grid
from scripts.spatial.affine_parameters import Frame

__all__ = ["NetworkGrid", "single_channel"]

_MULTIPLE = 4
_HIGH = 0.999  # quantile that an image is divided by
_LOOKED_AT = 1_000_000  # voxels that it is taken from; torch takes no more than 16 million


@dataclass(frozen=True, eq=False)
class NetworkGrid:
    """A grid of cubic voxels along the axes of the fixed image, around its centre.

    Attributes:
        shape: voxels along each axis, a multiple of 4.
        world: ``(4, 4)`` float64, from voxels from the centre to RAS mm.
        size: of a voxel, mm.
    """

    shape: tuple[int, ...]
    world: torch.Tensor
    size: float

    @classmethod
    def of_image(cls, image: WorldImage, side: int, enlarge: bool = True) -> NetworkGrid:
        """The grid for an image.

        Args:
            image: the fixed image.
            side: voxels along its longest side.
            enlarge: whether voxels may be smaller than the image's smallest side of a voxel.
        """
        frame = Frame.of_grid(image.affine, image.shape)
        size = 2 * float(frame.half_width.max()) / side
        if not enlarge:
            size = max(size, float(image.spacing.min()))
        cells = np.ceil(2 * frame.half_width.numpy() / size / _MULTIPLE - 1e-6)
        world = frame.world.clone()
        world[:3, :3] *= size
        world = world.to(image.values.device)
        return cls(tuple(int(n) * _MULTIPLE for n in cells), world, size)

    @property
    def affine(self) -> torch.Tensor:
        """``(4, 4)`` float64, from voxel indices to RAS mm."""
        return self.world @ centred_grid(self.shape).to(self.world)

    def resampled(self, image: WorldImage, matrices: torch.Tensor) -> WorldImage:
        """An image on this grid after matrices ``(B, 4, 4)``, from 0 to 1, and where it is known.

        Args:
            image: of voxels of about this size.
            matrices: from this grid's world to the image's.
        """
        affine = self.affine
        values, inside = on_grid(image, matrices, affine, self.shape)
        return WorldImage(values, affine.cpu().numpy(), inside)


def single_channel(image: WorldImage, size: float) -> WorldImage:
    """An image of one channel, the sum of all, from 0 to 1, in voxels near ``size`` mm."""
    small = reduced(image, reduction_factors(image.spacing, size))
    values = small.values.sum(1, keepdim=True)
    values = values - values.amin().clamp_max(0)
    every = max(1, values.numel() // _LOOKED_AT)
    high = torch.quantile(values.flatten()[::every], _HIGH)
    high = high if float(high) > 0 else values.amax()
    return WorldImage((values / high.clamp_min(1e-12)).clamp(0, 1), small.affine, small.inside)
