"""Pairs of a published atlas: its template, its subjects, and the fields between them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from scripts.cohort import DensityMap, Subject
from scripts.cohort.density import subject_density
from scripts.errors import CohortError
from scripts.runtime.input_files import read_json
from scripts.runtime.inside import inside
from scripts.runtime.ownership import NAME
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.checks import check_folder_names
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.grid import CropBox
from scripts.spatial.volumes import read_volume
from scripts.supervised.sources import SourcePair

__all__ = ["AtlasSource"]


class AtlasSource:
    """A published atlas's subjects as pairs: the template is the reference of each.

    Densities of all tracts are summed and used as ``log1p(x / log_offset)``, on one scale from 0 to
    the template's maximum, within the box of the cohort.

    Args:
        folder: with ``atlas.json``.

    Raises:
        CohortError: it isn't an atlas that has fields, or a file is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        described = WatchedFiles([self.folder / "atlas.json"])
        about = self._description()
        try:
            cohort = about["cohort"]
            self.offset = float(about["log_offset"])
            self.box = CropBox(*(tuple(map(int, cohort["crop"][end])) for end in ("start", "stop")))
            self.grid_shape = tuple(int(n) for n in cohort["grid"]["shape"])
            self.channels = max(1, len(cohort.get("tracts") or []))
            self.subjects = [_subject(one) for one in cohort["subjects"]]
            if not 0 < self.offset < math.inf:
                raise ValueError("log_offset must be > 0")
            sides = zip(self.box.start, self.box.stop, self.grid_shape, strict=True)
            if not all(0 <= start < stop <= side for start, stop, side in sides):
                raise ValueError(f"cohort.crop must be within {self.grid_shape}")
            check_folder_names([one.name for one in self.subjects])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CohortError(
                f"{self.folder / 'atlas.json'}: is not the description of an atlas with fields: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        names = [name for one in self.subjects for name in field_names(one.name)]
        fields = [inside(self.folder, f"fields/{name}") for name in names]
        for path in fields:
            if not path.is_file():
                raise CohortError(
                    f"{path}: is missing; publish the atlas with learned_atlas#save_fields true"
                )
        maps = [one.path for subject in self.subjects for one in subject.maps]
        self.watched = WatchedFiles([self.folder / "atlas_mean.nii.gz", *fields, *maps])
        described.check()
        self.watched.add(described)
        self.dims = 2 if len(self.grid_shape) == 2 else 3
        template = self._summed(read_volume(self.folder / "atlas_mean.nii.gz")[0])
        self.top = float(self._logarithm(template).max())
        if not self.top > 0:
            raise CohortError(f"{self.folder / 'atlas_mean.nii.gz'}: is empty")
        self.reference = self._as_bytes(template)
        self.shape = self.reference.shape

    def _description(self) -> dict[str, Any]:
        path = self.folder / "atlas.json"
        if not path.is_file():
            raise CohortError(f"{self.folder}: is not a published atlas (no atlas.json)")
        try:
            about = read_json(path)
        except ValueError as error:
            raise CohortError(f"{path}: is not JSON: {error}") from error
        if not isinstance(about, dict) or about.get("name") != NAME:
            raise CohortError(f"{path}: is not the description of an atlas of this bundle")
        if about.get("kind") != "learned":
            raise CohortError(
                f"{path}: is an atlas of kind {about.get('kind')!r}; only a learned one has fields"
            )
        if about.get("mixture"):
            raise CohortError(f"{path}: is a mixture of templates; pairs need one template")
        return about

    def check_unchanged(self) -> None:
        """Make sure that all files are what they were, and no other atlas was published meanwhile.

        Raises:
            CohortError: naming the one that isn't.
        """
        self.watched.check()

    def __len__(self) -> int:
        """Subjects."""
        return len(self.subjects)

    def __getitem__(self, index: int) -> SourcePair:
        """A subject, and the fields to and from the template."""
        subject = self.subjects[index]
        density = subject_density(subject, self.channels, self.grid_shape)
        fields = []
        for name in field_names(subject.name):
            path = inside(self.folder, f"fields/{name}")
            field = read_field(path, self.dims)
            if field.shape[1:] != self.grid_shape:
                raise CohortError(
                    f"{path}: has shape {field.shape[1:]}, the atlas's grid {self.grid_shape}"
                )
            fields.append(np.ascontiguousarray(self.box.crop(field), dtype=np.float32))
        moving = self._as_bytes(density.sum(0))
        return SourcePair(self.reference, moving, fields[0], fields[1], 0, index, index)

    def _summed(self, channels: np.ndarray) -> np.ndarray:
        """All tracts of ``(C, X, Y, Z)``, on the grid."""
        if len(channels) != self.channels:
            raise CohortError(
                f"{self.folder / 'atlas_mean.nii.gz'}: has {len(channels)} channels, atlas.json "
                f"names {self.channels} tracts"
            )
        total = channels.sum(0)
        total = total[..., 0] if self.dims == 2 else total
        if total.shape != self.grid_shape:
            raise CohortError(
                f"{self.folder / 'atlas_mean.nii.gz'}: has shape {total.shape}, atlas.json has "
                f"{self.grid_shape}"
            )
        return total

    def _logarithm(self, density: np.ndarray) -> np.ndarray:
        return np.log1p(np.maximum(density, 0) / self.offset)

    def _as_bytes(self, density: np.ndarray) -> np.ndarray:
        shares = self.box.crop(self._logarithm(density)) / self.top
        return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def _subject(entry: dict[str, Any]) -> Subject:
    maps = []
    for one in entry["maps"]:
        if "counted" in one:
            raise ValueError(f"{one['path']} is a tractogram; pairs need density maps")
        maps.append(DensityMap.of_record(one))
    return Subject(str(entry["subject"]), tuple(maps))
