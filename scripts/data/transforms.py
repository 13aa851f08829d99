"""Dictionary transforms and datasets, the same for training, export and inference."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import CacheDataset, Dataset, MetaTensor, NibabelReader, PersistentDataset
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    MapTransform,
    SpatialCropd,
    Transform,
)
from monai.utils import ensure_tuple

from scripts.cohort import density_divisor
from scripts.errors import CheckpointError, CohortError
from scripts.runtime.watched_files import changed
from scripts.spatial.grid import Grid
from scripts.spatial.nifti import open_nifti
from scripts.spatial.transforms import resample

__all__ = [
    "LogDensityd",
    "MapsReader",
    "NormaliseDensityd",
    "OntoGridd",
    "PresenceLabeld",
    "changed_transform",
    "density_dataset",
    "density_transforms",
    "linear_transforms",
]


_SHA256 = re.compile("[0-9a-f]{64}")

HASHES = "sha256"
"""Of an image's metadata: its files, and the hashes of their bytes."""


class _HashedImage:
    """What a file held, and the hash of its bytes; or why it can't be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.error: CohortError | None = None
        try:
            image, self.sha256 = open_nifti(path)
        except CohortError as error:
            self.error = error
            return
        image.set_filename(path)
        self.image = correct_nifti_header_if_necessary(image)


class MapsReader(NibabelReader):
    """MONAI's reader of NIfTI files, made safe for threads.

    `NibabelReader` keeps the names of the files it read last in itself and pairs them with the
    images it is asked to unpack next. Where threads fill a cache through one reader, a subject
    of several maps then loses maps to another thread's shorter list (MONAI 1.6.1). Here each call
    takes the names from its own images. Each file is read once, at once, and its hash is told.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Images whose voxels are in memory: what is unpacked later are the bytes of the hash.

        A file that can't be read is told by `get_data`: MONAI drops what is raised here.

        Args:
            data: a file, or several.
            kwargs: of nibabel's loader; without effect.
        """
        images = [_HashedImage(str(name)) for name in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The images' values, stacked as channels, and their metadata.

        ``meta[HASHES]`` lists each file and the SHA-256 of its bytes.

        Raises:
            CohortError: a file couldn't be read, or the images have different shapes.
        """
        own, read = copy.copy(self), ensure_tuple(img)
        own.filenames = tuple(one.path for one in read)
        for one in read:
            if one.error is not None:
                raise one.error
        for one in read[1:]:
            if one.image.shape != read[0].image.shape:
                raise CohortError(
                    f"{one.path}: has shape {one.image.shape}, {read[0].path} {read[0].image.shape}"
                    "; the maps of a subject must lie on one grid"
                )
        values, meta = NibabelReader.get_data(own, tuple(one.image for one in read))
        meta[HASHES] = [[one.path, one.sha256] for one in read]
        return values, meta


class NormaliseDensityd(MapTransform):
    """Convert counts to densities: divide each map by its divisor, and sum the maps of a channel.

    The items of a cohort have ``divisor`` and ``channel``, with one entry per map. A single image
    (from an annotation tool, for example) has neither: the divisor is then computed by the same
    rule as for the cohort, from the map and the files beside it.

    Args:
        keys: of the images, ``(maps, *shape)`` as loaded.
        normalisation: waytotal, streamline_density, max or none.
        channels: number of channels of the result.
        spatial_dims: 2 or 3; a last axis of length 1 beyond them is dropped.
    """

    def __init__(
        self,
        keys: KeysCollection,
        normalisation: str,
        channels: int = 1,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__(keys)
        self.normalisation = normalisation
        self.channels = channels
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace ``(maps, *shape)`` by ``(channels, *shape)`` float32 densities."""
        result = dict(data)
        for key in self.key_iterator(result):
            maps = result[key]
            _check_unchanged(maps, result.get("sha256"))
            while maps.dim() > self.spatial_dims + 1 and maps.shape[-1] == 1:
                maps = maps[..., 0]
            divisors = result.get("divisor")
            if divisors is None:
                path = Path(str(maps.meta["filename_or_obj"]))
                divisors = [
                    density_divisor(self.normalisation, path, np.asarray(one)) for one in maps
                ]
            places = result.get("channel", list(range(len(divisors))))
            density = maps[:1].new_zeros((self.channels, *maps.shape[1:]))
            for one, divisor, place in zip(maps, divisors, places, strict=True):
                density[place] += one / float(divisor)
            result[key] = density
        # These lists have another length for each subject, can't be collated, and aren't needed any
        # more.
        for done in ("divisor", "channel", "sha256"):
            result.pop(done, None)
        return result


def _check_unchanged(maps: Any, expected: Sequence[str] | None) -> None:
    """Refuse a file that isn't the one that was inspected.

    Raises:
        CohortError: naming it.
    """
    found = getattr(maps, "meta", {}).pop(HASHES, None)
    if expected is None or found is None:  # a list without hashes, or another reader
        return
    for (path, sha256), wanted in zip(found, expected, strict=True):
        # A list from elsewhere may say something else under this name.
        if _SHA256.fullmatch(str(wanted)) and sha256 != wanted:
            raise changed(path)


class OntoGridd(MapTransform):
    """Checks that images are on an atlas's grid; refuses others, or resamples them if asked.

    Density is interpolated linearly and is 0 outside the image.

    Args:
        keys: of the images, ``(C, *shape)`` with MONAI's metadata.
        grid: of the atlas.
        resample: resample an image from another grid.
    """

    def __init__(self, keys: KeysCollection, grid: Grid, resample: bool = False) -> None:
        super().__init__(keys)
        self.grid = grid
        self.resample = resample

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the images on the grid.

        Raises:
            CohortError: an image is on another grid; the message names the file and the difference.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            affine = np.asarray(image.affine, dtype=np.float64)
            own = Grid(tuple(image.shape[1:]), affine, nib.Nifti1Header())
            difference = own.same_as(self.grid)
            if difference is None:
                continue
            meta = {name: value for name, value in image.meta.items() if name != "affine"}
            path = meta.get("filename_or_obj", key)
            if not self.resample:
                raise CohortError(
                    f"{path} is not on the atlas's grid: {difference}; to resample it, set "
                    "--learned_atlas#cohort#resample true"
                )
            result[key] = MetaTensor(
                torch.from_numpy(self._resampled(image.numpy(), own, str(path))),
                affine=torch.from_numpy(self.grid.affine),
                meta={**meta, "spatial_shape": np.array(self.grid.shape)},
            )
        return result

    def _resampled(self, image: np.ndarray, own: Grid, path: str) -> np.ndarray:
        d = len(self.grid.shape)
        here = np.linalg.solve(own.affine, self.grid.affine)  # voxels of the atlas to the image's
        if image.ndim != d + 1 or not np.allclose(here[d:3, [*range(d), 3]], 0, atol=1e-3):
            raise CohortError(
                f"{path}: an image of {image.ndim - 1} dimensions can't be resampled to the "
                f"atlas's {d}, or is in another plane"
            )
        return resample(image, own, [], self.grid)


class PresenceLabeld(MapTransform):
    """Convert densities to one map of labels, as annotation tools show them.

    The label of a voxel is 1 + the channel with the highest density, 0 where none is present.

    Args:
        keys: of the densities, ``(C, *shape)``.
        presence_value: density above which a tract is present.
    """

    def __init__(self, keys: KeysCollection, presence_value: float) -> None:
        super().__init__(keys)
        self.presence_value = presence_value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace densities by labels ``(1, *shape)`` uint8."""
        result = dict(data)
        for key in self.key_iterator(result):
            most, channel = result[key].max(dim=0, keepdim=True)
            result[key] = ((channel + 1) * (most > self.presence_value)).to(torch.uint8)
        return result


class LogDensityd(MapTransform):
    """``log1p(x / log_offset)``: log(x + offset) up to a constant, 0 where the density is 0.

    Args:
        keys: of the densities.
        log_offset: density above which the transform is logarithmic rather than linear, > 0.
    """

    def __init__(self, keys: KeysCollection, log_offset: float) -> None:
        super().__init__(keys)
        self.log_offset = log_offset

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace densities by log densities."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.log1p(result[key] / self.log_offset)
        return result


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
        grid: required grid of every image (a cohort's was checked when it was read).
        resample: resample images to the grid, see `OntoGridd`.
        changes: by class name of a transform, arguments that differ from these.
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
        listed.append((OntoGridd, {"grid": grid, "resample": resample}))
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
