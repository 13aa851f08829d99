"""A pair of images from Python: prepared for a registration, and its result as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.networks.precision import open_device
from scripts.registration.deformable import ElasticResult
from scripts.registration.images import WorldImage, normalised, read_image
from scripts.settings.refine import RefineConfig
from scripts.spatial.deformation import Deformation
from scripts.spatial.image_arrays import check_affine, volume_of

__all__ = ["PreparedPair", "deformation_of", "prepare_pair"]


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """Two images and the settings of their registration.

    Attributes:
        fixed: the fixed image.
        moving: the moving image.
        start: ``(4, 4)`` float64, from fixed point to moving point; None: the identity.
        settings: of the block ``refine``.
    """

    fixed: WorldImage
    moving: WorldImage
    start: torch.Tensor | None
    settings: RefineConfig


def prepare_pair(
    images: tuple[str | Path | np.ndarray, str | Path | np.ndarray],
    affines: tuple[np.ndarray | None, np.ndarray | None],
    masks: tuple[str | Path | np.ndarray | None, str | Path | np.ndarray | None],
    start: np.ndarray | None,
    settings: Mapping[str, Any] | None,
) -> PreparedPair:
    """Check, read and normalise a pair, the fixed image first in each tuple.

    Args:
        images: paths or arrays.
        affines: ``(4, 4)`` RAS mm, of arrays.
        masks: not 0 in voxels that don't count, on the image's grid.
        start: initial ``(4, 4)``, RAS mm; None: the identity.
        settings: of the block ``refine``, without paths.

    Raises:
        TractAtlasError: a setting breaks its rule, or a file can't be read.
        ValueError: an argument can't be used; the message says why.
    """
    # The images come from the caller; the paths of the block only have to satisfy their rules.
    config = RefineConfig.load({"fixed": "fixed", "moving": ["moving"], **(settings or {})})
    if config.fixed_mask is not None or config.moving_mask is not None:
        raise ValueError("masks in settings: must be given as fixed_mask and moving_mask")
    device = open_device(config.device)
    fixed, moving = (
        _prepared(name, image, affine, mask, config, device)
        for name, image, affine, mask in zip(
            ("fixed", "moving"), images, affines, masks, strict=True
        )
    )
    if fixed.values.ndim != moving.values.ndim:
        raise ValueError("fixed and moving: must both be planes or both volumes")
    initial = None if start is None else torch.from_numpy(check_affine("start", start))
    return PreparedPair(fixed, moving, initial, config)


def _prepared(
    name: str,
    image: str | Path | np.ndarray,
    affine: np.ndarray | None,
    mask: str | Path | np.ndarray | None,
    settings: RefineConfig,
    device: torch.device,
) -> WorldImage:
    values, grid = volume_of(name, image, affine)
    hole = None
    if mask is not None:
        hole = volume_of(f"{name}_mask", mask, affine, labels=True)[0] != 0
        if hole.shape != (1, *values.shape[1:]) or hole.all():
            raise ValueError(
                f"{name}_mask of shape {hole.shape[1:]}: must have the image's shape, "
                f"{values.shape[1:]}, and be 0 somewhere"
            )
        values = np.where(hole, 0, values)
    spatial_dims = 2 if grid.shape[2] == 1 else 3
    result = read_image(normalised(values, settings.log_offset), grid, spatial_dims, device)
    if hole is not None:
        result = result.without(torch.from_numpy(hole.reshape(result.shape)))
    return result.without_background() if settings.background == "unknown" else result


def deformation_of(result: ElasticResult, affine: np.ndarray) -> Deformation:
    """The result of a deformable registration as arrays.

    Args:
        result: displacements in voxels of the fixed grid.
        affine: ``(4, 4)`` RAS mm, of the fixed grid.
    """

    def in_mm(voxels: torch.Tensor) -> np.ndarray:
        components = voxels[0].detach().cpu().double()
        axes = torch.from_numpy(affine[:3, : len(components)])
        moves = torch.einsum("ij,j...->i...", axes, components)
        return moves.numpy().reshape(3, *(*moves.shape[1:], 1)[:3])

    return Deformation(
        result.matrix.cpu().numpy(),
        in_mm(result.displacement),
        in_mm(result.inverse),
        affine,
        min(one["corner_min"] for one in result.jacobian.values()),
    )
