"""A moving image on the fixed grid, and what counts there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scripts.registration.images import WorldImage, counts
from scripts.spatial.resampling import resample_by_matrix

__all__ = ["counted_of_both", "moved_by", "on_grid"]


def on_grid(
    image: WorldImage,
    matrix: torch.Tensor,
    affine: np.ndarray | torch.Tensor,
    shape: Sequence[int],
    displacement: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An image on a grid, and the share of each voxel that it covers (None: all of it).

    Args:
        image: the image.
        matrix: ``(B, 4, 4)``, from points of the grid to points of the image.
        affine: ``(4, 4)``, of the grid.
        shape: of the grid.
        displacement: ``(B, d, *shape)`` in voxels of the grid, applied before the matrix.
    """
    whole = image.values
    if image.inside is not None:
        whole = torch.cat([whole, image.inside], dim=1)
    result = resample_by_matrix(
        whole.expand(len(matrix), *whole.shape[1:]), image.affine, matrix, affine, shape,
        displacement=displacement,
    )  # fmt: skip
    if image.inside is None:
        return result, None
    return result[:, :-1], result[:, -1:]


def moved_by(
    matrix: torch.Tensor,
    fixed: WorldImage,
    moving: WorldImage,
    displacement: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The moving image on the fixed grid, and the share of each voxel that it covers.

    Args:
        matrix: ``(B, 4, 4)``.
        fixed: gives the grid.
        moving: the image.
        displacement: ``(B, d, *shape)`` in voxels of the fixed grid, applied before the matrix.
    """
    return on_grid(moving, matrix, fixed.affine, fixed.shape, displacement)


@torch.no_grad()
def counted_of_both(
    matrix: torch.Tensor,
    fixed: WorldImage,
    moving: WorldImage,
    displacement: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Voxels of the fixed grid that are in no hole of either image, ``(B or 1, 1, *shape)`` bool.

    The arguments are those of `moved_by`. None if neither image has a hole. There is no gradient:
    a pair must not become more similar by moving a hole over what differs.
    """
    counted = None if fixed.hole is None else counts(fixed.hole)
    if moving.hole is not None:
        hole = resample_by_matrix(
            moving.hole.expand(len(matrix), *moving.hole.shape[1:]), moving.affine, matrix,
            fixed.affine, fixed.shape, displacement=displacement,
        )  # fmt: skip
        counted = counts(hole) if counted is None else counted & counts(hole)
    return counted
