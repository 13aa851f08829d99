"""A dictionary transform that brings images onto an atlas's grid, or refuses them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.errors import CohortError
from scripts.spatial.density_resampling import resample_density
from scripts.spatial.grid import TOLERANCE, Grid, StorageOrder

__all__ = ["OntoGridd", "in_order", "with_values"]


def with_values(image: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    """An image's metadata with other values."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(image.dtype)
    return MetaTensor(tensor, meta=image.meta) if isinstance(image, MetaTensor) else tensor


def in_order(image: torch.Tensor, order: StorageOrder) -> torch.Tensor:
    """An image ``(maps, *spatial)`` with its axes in another order, and the affine with it."""
    turned = with_values(image, order.of_array(np.asarray(image)))
    if isinstance(image, MetaTensor) and isinstance(turned, MetaTensor):
        image_grid = Grid(tuple(image.shape[1:]), np.asarray(image.affine), nib.Nifti1Header())
        turned.affine = torch.from_numpy(order.of_grid(image_grid).affine)
        turned.meta["spatial_shape"] = np.array(turned.shape[1:])
    return turned


class OntoGridd(MapTransform):
    """Checks that images are on an atlas's grid; refuses others, or resamples them if asked.

    The same voxels stored in another order of axes are reordered. Resampling gives what the same
    streamlines would give on the grid, see `resample_density`.

    Args:
        keys: of the images, ``(C, *shape)`` with MONAI's metadata.
        grid: the atlas's.
        resample: bring an image from another grid onto this one.
        tolerance: how far corners of equal grids may lie apart, voxels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid: Grid,
        resample: bool = False,
        tolerance: float = TOLERANCE,
    ) -> None:
        super().__init__(keys)
        self.grid = grid
        self.resample = resample
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the images on the grid.

        Raises:
            CohortError: an image is on another grid; the message names the file and the difference.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            affine = np.asarray(image.affine, dtype=np.float64)
            image_grid = Grid(tuple(image.shape[1:]), affine, nib.Nifti1Header())
            difference = image_grid.same_as(self.grid, self.tolerance)
            if difference is None:
                continue
            order = image_grid.order_onto(self.grid, self.tolerance)
            if order is not None:
                result[key] = in_order(image, order)
                continue
            meta = {name: value for name, value in image.meta.items() if name != "affine"}
            path = meta.get("filename_or_obj", key)
            if not self.resample:
                raise CohortError(
                    f"{path} is not on the atlas's grid: {difference}; to resample it, set "
                    "--learned_atlas#cohort#resample true"
                )
            result[key] = MetaTensor(
                torch.from_numpy(
                    self._resampled(
                        image.numpy(), affine, str(path), meta.get("normalisation", "none")
                    )
                ),
                affine=torch.from_numpy(self.grid.affine),
                meta={**meta, "spatial_shape": np.array(self.grid.shape)},
            )
        return result

    def _resampled(
        self, image: np.ndarray, affine: np.ndarray, path: str, normalisation: str
    ) -> np.ndarray:
        d = len(self.grid.shape)
        to_image = np.linalg.solve(affine, self.grid.affine)  # voxels of the atlas to the image's
        if image.ndim != d + 1 or not np.allclose(to_image[d:3, [*range(d), 3]], 0, atol=1e-3):
            raise CohortError(
                f"{path}: an image of {image.ndim - 1} dimensions can't be resampled to the "
                f"atlas's {d}, or is in another plane"
            )
        resampled = resample_density(image, affine, self.grid, normalisation)
        if image.any() and not resampled.any():
            raise CohortError(
                f"{path}: no part of it is on the atlas's grid; bring it to the atlas's space "
                "first (verbs refine and warp)"
            )
        return resampled
