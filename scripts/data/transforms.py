"""Dictionary transforms of densities, the same for training, export and inference."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.cohort import density_divisor
from scripts.cohort.density import zeroed
from scripts.cohort.masks import mask_on_grid
from scripts.cohort.subject_images import SubjectImage
from scripts.data.maps_reader import HASHES
from scripts.data.onto_grid import in_order, with_values
from scripts.errors import CohortError
from scripts.runtime.watched_files import changed
from scripts.spatial.grid import Grid, StorageOrder

__all__ = ["LogDensityd", "NormaliseDensityd", "PresenceLabeld"]

_MASK_KEY = "learned_atlas.cohort.mask"
_SHA256 = re.compile("[0-9a-f]{64}")


class NormaliseDensityd(MapTransform):
    """Convert counts to densities: divide each map by its divisor, and sum the maps of a channel.

    A cohort's data list brings ``divisor`` and ``channel``, one entry a map; ``zeroed`` where
    values are read as 0, ``order`` where the maps' axes are stored otherwise than the cohort's,
    ``mask`` (path and hash) where voxels don't count: they are read as 0, whatever they contain. A
    single image (of an annotation tool, for example) has none of them: its divisor is then computed
    by the cohort's rule, from the map and the files beside it.

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
                maps = with_values(maps, zeroed(np.asarray(maps), result["zeroed"]))
            if "mask" in result:
                maps = _without_masked(maps, *result["mask"])
            if "order" in result:
                maps = in_order(maps, StorageOrder.from_list(result["order"]))
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
        # Lists whose length differs between subjects can't be collated; they aren't needed any
        # more.
        for done in ("divisor", "channel", "sha256", "zeroed", "order", "mask"):
            result.pop(done, None)
        return result


def _without_masked(maps: torch.Tensor, path: str, sha256: str) -> torch.Tensor:
    """Maps ``(maps, *shape)`` with 0 where a mask covers them."""
    if not isinstance(maps, MetaTensor):
        raise CohortError(f"{path}: masks need images with their affine")
    grid = Grid(tuple(maps.shape[1:]), np.asarray(maps.affine), nib.Nifti1Header())
    covered = mask_on_grid(SubjectImage(Path(path), sha256), grid, _MASK_KEY)
    return with_values(maps, np.where(covered, 0, np.asarray(maps)))


def _check_unchanged(maps: Any, expected: Sequence[str] | None) -> None:
    """Refuse a file that isn't the one that was inspected.

    Raises:
        CohortError: naming it.
    """
    hashed = getattr(maps, "meta", {}).pop(HASHES, None)
    if expected is None or hashed is None:  # a list without hashes, or another reader
        return
    for (path, sha256), wanted in zip(hashed, expected, strict=True):
        # Another program's list may use this name for something else.
        if _SHA256.fullmatch(str(wanted)) and sha256 != wanted:
            raise changed(path)


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
