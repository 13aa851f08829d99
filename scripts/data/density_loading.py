"""From files to log densities: the transforms of a training as one chain, and a cached dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    SpatialCropd,
    Transform,
)

from scripts.data.maps_reader import MapsReader
from scripts.data.onto_grid import OntoGridd
from scripts.data.transforms import LogDensityd, NormaliseDensityd
from scripts.errors import CheckpointError
from scripts.spatial.grid import TOLERANCE, Grid

__all__ = ["changed_transform", "density_dataset", "density_transforms", "linear_transforms"]


def changed_transform(make: Callable[..., Any], changes: Mapping[str, Any]) -> Any:
    """A transform with arguments that a model's file brings.

    Args:
        make: its class, or a `functools.partial` of it.
        changes: arguments from the model's description.

    Raises:
        CheckpointError: the transform has no such argument, or doesn't take the value.
    """
    try:
        return make(**changes)
    except (TypeError, ValueError, LookupError) as error:
        if not changes:
            raise
        name = getattr(getattr(make, "func", make), "__name__", "transform")
        raise CheckpointError(
            f"the model's description changes {name} by {dict(changes)}, which it doesn't take: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def density_transforms(
    normalisation: str,
    channels: int,
    log_offset: float | None,
    crop_start: Sequence[int],
    crop_stop: Sequence[int],
    track_meta: bool = False,
    key: str = "image",
    grid: Grid | None = None,
    resample: bool = False,
    tolerance: float = TOLERANCE,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Compose:
    """From files to log densities inside the cohort's box, as listed in ``configs/train.yaml``.

    Args:
        normalisation: of the cohort.
        channels: bundles learned jointly.
        log_offset: see `LogDensityd`; None keeps linear densities.
        crop_start: first voxel of the box.
        crop_stop: one past the last voxel of the box.
        track_meta: keep MONAI's metadata (needed to invert the crop).
        key: of the image.
        grid: which every image must lie on (a cohort's was checked when it was read).
        resample: bring images onto the grid, see `OntoGridd`.
        tolerance: how far corners of equal grids may lie apart, voxels.
        changes: by the name of a transform's class, arguments that differ from these.
    """
    changed = changes or {}
    listed: list[tuple[type[Transform], dict[str, Any]]] = [
        (
            LoadImaged,
            {
                "reader": MapsReader,
                "dtype": np.float32,
                "image_only": True,
                "squeeze_non_spatial_dims": True,
            },
        ),
        (EnsureChannelFirstd, {}),
        (
            NormaliseDensityd,
            {
                "normalisation": normalisation,
                "channels": channels,
                "spatial_dims": len(tuple(crop_start)),
            },
        ),
    ]
    if grid is not None:
        onto = {"grid": grid, "resample": resample, "tolerance": tolerance}
        listed.append((OntoGridd, onto))
    listed.append((SpatialCropd, {"roi_start": list(crop_start), "roi_end": list(crop_stop)}))
    if log_offset is not None:
        listed.append((LogDensityd, {"log_offset": log_offset}))
    listed.append((EnsureTyped, {"dtype": torch.float32, "track_meta": track_meta}))
    return Compose(
        [
            changed_transform(
                partial(kind, **{"keys": key, **arguments}), changed.get(kind.__name__, {})
            )
            for kind, arguments in listed
        ]
    )


def linear_transforms(transform: Compose) -> Compose:
    """The same transforms without the logarithm."""
    return Compose(
        [one for one in transform.flatten().transforms if not isinstance(one, LogDensityd)]
    )


def density_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    cache: str = "ram",
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> Dataset:
    """The cohort as a MONAI dataset, cached as one setting says.

    Args:
        data: the cohort's data list.
        transform: see `density_transforms`.
        cache: ``ram``, ``device`` (kept on the training device), ``disk`` or ``none``.
        cache_dir: for ``disk``.
        device: for ``device``.
        num_workers: threads that fill a cache in memory.
    """
    if cache == "ram":
        return CacheDataset(data, transform, num_workers=num_workers or None, progress=False)
    if cache == "device":
        moved = Compose([*transform.transforms, EnsureTyped("image", device=torch.device(device))])
        return CacheDataset(data, moved, num_workers=num_workers or None, progress=False)
    if cache == "disk":
        if cache_dir is None:
            raise ValueError("cache 'disk' needs cache_dir")
        return PersistentDataset(data, transform, cache_dir=cache_dir)
    return Dataset(data, transform)
