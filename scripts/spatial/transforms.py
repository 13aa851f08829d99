"""Transforms from elsewhere: ITK's displacement fields and affines, composed and applied once.

Every transform here maps POINTS of the image that is wanted to points of the image that is
resampled, in world millimetres, RAS. Files hold ITK's world, LPS: x and y run the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.ndimage import map_coordinates

from scripts.spatial.grid import Grid

__all__ = ["AffineTransform", "FieldTransform", "Transform", "resample"]

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
_SLAB = 16  # slices of the wanted grid that are in work at once


class Transform(Protocol):
    """A map of points."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points in RAS mm to where they come from."""
        ...


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """``y = A x``.

    Attributes:
        matrix: ``(4, 4)``, RAS mm to RAS mm.
    """

    matrix: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points to where they come from."""
        return self.matrix[:3, :3] @ points + self.matrix[:3, 3:]

    def inverted(self) -> AffineTransform:
        """The map back."""
        return AffineTransform(np.linalg.inv(self.matrix))


@dataclass(frozen=True, eq=False)
class FieldTransform:
    """``y = x + u(x)``, u interpolated linearly between voxels, 0 outside the field as in ITK.

    Outside starts half a voxel beyond the outermost centres; up to there the border's value holds.

    Attributes:
        displacement: ``(3, X, Y, Z)``, RAS mm.
        grid: where the voxels lie.
    """

    displacement: np.ndarray
    grid: Grid

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points to where they come from."""
        inverse = np.linalg.inv(self.grid.affine)
        voxels = inverse[:3, :3] @ points + inverse[:3, 3:]
        ends = np.array(self.grid.shape)[:, None] - 0.5
        inside = ((voxels >= -0.5) & (voxels <= ends)).all(axis=0)
        moves = [
            map_coordinates(component, voxels, order=1, mode="nearest")
            for component in self.displacement
        ]
        return points + np.where(inside, moves, 0.0)


# ---------------------------------------------------------------------------------------------
# Affines
# ---------------------------------------------------------------------------------------------


# ---------------------------------------------------------------------------------------------
# Application
# ---------------------------------------------------------------------------------------------


def resample(
    volume: np.ndarray,
    source: Grid,
    transforms: Sequence[Transform],
    wanted: Grid,
    order: int = 1,
) -> np.ndarray:
    """An image seen from another grid through a chain of transforms, interpolated once.

    A point of the wanted grid passes through the transforms in their order, the first one first,
    and the image is read where it arrives; ``antsApplyTransforms -r wanted -i image -t first -t
    second`` means the same. 0 outside of the image.

    Args:
        volume: ``(C, X, Y, Z)``.
        source: grid of the volume.
        transforms: in the order of ``-t`` options; none: the identity.
        wanted: grid of the result.
        order: 1 interpolates linearly, 0 takes the nearest voxel, for labels.

    Returns:
        ``(C, *wanted.shape)`` float32.
    """
    x, y, z = (*wanted.shape, 1)[:3]
    to_voxels = np.linalg.inv(source.affine)
    result = np.empty((len(volume), x, y, z), dtype=np.float32)
    for start in range(0, x, _SLAB):
        stop = min(start + _SLAB, x)
        indices = np.mgrid[start:stop, :y, :z].reshape(3, -1)
        points = wanted.affine[:3, :3] @ indices + wanted.affine[:3, 3:]
        for transform in transforms:
            points = transform(points)
        voxels = to_voxels[:3, :3] @ points + to_voxels[:3, 3:]
        for channel, values in zip(result, volume, strict=True):
            # grid-constant fades over the last voxel, as the network's warp does.
            sampled = map_coordinates(values, voxels, order=order, mode="grid-constant")
            channel[start:stop] = sampled.reshape(stop - start, y, z)
    return result
