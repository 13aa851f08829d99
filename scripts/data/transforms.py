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
from scripts.cohort.density import zeroed
from scripts.cohort.masks import mask_on_grid
from scripts.cohort.subject_images import SubjectImage
from scripts.errors import CheckpointError, CohortError
from scripts.runtime.file_names import is_image_name
from scripts.runtime.watched_files import changed
from scripts.spatial.density_resampling import resample_density
from scripts.spatial.grid import TOLERANCE, Grid, StorageOrder
from scripts.spatial.image_files import open_image_file

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


_MASK_KEY = "learned_atlas.cohort.mask"
_LOOSE = 0.5  # voxels: the largest grid_tolerance of a cohort
_SHA256 = re.compile("[0-9a-f]{64}")

HASHES = "sha256"
"""Of an image's metadata: its files, and the hashes of their bytes."""


class _HashedImage:
    """What a file held, and the hash of its bytes; or why it can't be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.error: CohortError | None = None
        try:
            opened = open_image_file(path)
        except CohortError as error:
            self.error = error
            return
        self.image, self.sha256 = opened.image, opened.sha256


class MapsReader(NibabelReader):
    """MONAI's reader of NIfTI files, by this bundle's own opening of files.

    So training sees what the inspection of a cohort saw: every format, unit and form of header, by
    the one rule of `scripts.spatial.orientation`. Maps of one call that are stored in another axis
    order than the first are reordered to its order.

    `NibabelReader` keeps the names of the files it read last in itself and pairs them with the
    images it is asked to unpack next. Where threads fill a cache through one reader, a subject
    of several maps then loses maps to another thread's shorter list (MONAI 1.6.1). Here each call
    takes the names from its own images. Each file is read once, and its hash is recorded.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all the names are those of images that are read here."""
        return all(is_image_name(name) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Images whose voxels are in memory: what is unpacked later are the bytes of the hash.

        A file that can't be read is reported by `get_data`: MONAI drops errors raised here.

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
        reader, read = copy.copy(self), ensure_tuple(img)
        reader.filenames = tuple(one.path for one in read)
        for one in read:
            if one.error is not None:
                raise one.error
        first = read[0].image
        images = (first, *(_in_order_of(first, one.image) for one in read[1:]))
        for one, image in zip(read, images, strict=True):
            if image.shape != first.shape:
                raise CohortError(
                    f"{one.path}: has shape {image.shape}, {read[0].path} {first.shape}; the maps "
                    "of a subject must lie on one grid"
                )
        values, meta = NibabelReader.get_data(reader, images)
        meta[HASHES] = [[one.path, one.sha256] for one in read]
        return values, meta


def _in_order_of(first: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image on the first one's grid, exactly; as it is if it lies on another grid."""
    wanted, stored = (
        Grid(tuple(one.shape[:3]), np.asarray(one.affine), one.header) for one in (first, image)
    )
    order = stored.order_onto(wanted, _LOOSE)
    if order is None or len(image.shape) != 3:
        return image
    values = order.of_array(np.asanyarray(image.dataobj))
    return nib.Nifti1Image(values, first.affine, first.header)


class NormaliseDensityd(MapTransform):
    """Convert counts to densities: divide each map by its divisor, and sum the maps of a channel.

    A cohort's data list brings ``divisor`` and ``channel``, one entry a map; ``zeroed`` where
    values are read as 0, ``order`` where the maps' axes are stored otherwise than the cohort's,
    ``mask`` (path and hash) where voxels don't count: they are read as 0, whatever they contain. A
    lone image (an annotation tool's, say) brings none of them: the divisor is then found by the
    same rule as the cohort's, from the map and what lies beside it.

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
            if "zeroed" in result:
                maps = _with_values(maps, zeroed(np.asarray(maps), result["zeroed"]))
            if "mask" in result:
                maps = _without_masked(maps, *result["mask"])
            if "order" in result:
                maps = _in_order(maps, StorageOrder.from_list(result["order"]))
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
            if isinstance(density, MetaTensor):
                density.meta["normalisation"] = self.normalisation
            result[key] = density
        # Lists of one length a subject can't be collated into a batch, and are done with.
        for done in ("divisor", "channel", "sha256", "zeroed", "order", "mask"):
            result.pop(done, None)
        return result


def _without_masked(maps: torch.Tensor, path: str, sha256: str) -> torch.Tensor:
    """Maps ``(maps, *shape)`` with 0 where a mask covers them."""
    if not isinstance(maps, MetaTensor):
        raise CohortError(f"{path}: masks need images with their affine")
    grid = Grid(tuple(maps.shape[1:]), np.asarray(maps.affine), nib.Nifti1Header())
    covered = mask_on_grid(SubjectImage(Path(path), sha256), grid, _MASK_KEY)
    return _with_values(maps, np.where(covered, 0, np.asarray(maps)))


def _with_values(image: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    """An image's metadata with other values."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(image.dtype)
    return MetaTensor(tensor, meta=image.meta) if isinstance(image, MetaTensor) else tensor


def _in_order(image: torch.Tensor, order: StorageOrder) -> torch.Tensor:
    """An image ``(maps, *spatial)`` with its axes in another order, and the affine with it."""
    turned = _with_values(image, order.of_array(np.asarray(image)))
    if isinstance(image, MetaTensor) and isinstance(turned, MetaTensor):
        image_grid = Grid(tuple(image.shape[1:]), np.asarray(image.affine), nib.Nifti1Header())
        turned.affine = torch.from_numpy(order.of_grid(image_grid).affine)
        turned.meta["spatial_shape"] = np.array(turned.shape[1:])
    return turned


def _check_unchanged(maps: Any, expected: Sequence[str] | None) -> None:
    """Refuse a file that isn't the one that was inspected.

    Raises:
        CohortError: naming it.
    """
    hashed = getattr(maps, "meta", {}).pop(HASHES, None)
    if expected is None or hashed is None:  # a list without hashes, or another reader
        return
    for (path, sha256), wanted in zip(hashed, expected, strict=True):
        # A list from elsewhere may say something else under this name.
        if _SHA256.fullmatch(str(wanted)) and sha256 != wanted:
            raise changed(path)


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
                result[key] = _in_order(image, order)
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
