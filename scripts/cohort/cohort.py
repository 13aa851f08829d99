"""The cohort: subjects that have been read and checked and share one grid."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.cohort.covariates import CovariateCoding
from scripts.cohort.patterns import Rejection
from scripts.cohort.subject_images import SubjectImages
from scripts.cohort.tractogram_maps import CountedMap
from scripts.errors import shown, some_names
from scripts.spatial.grid import CropBox, Grid, StorageOrder

__all__ = ["Cohort", "DensityMap", "NewSubjects", "Subject"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DensityMap:
    """A file of a subject.

    Attributes:
        path: absolute.
        channel: the model's channel that it belongs to.
        divisor: density = values of the file / divisor.
        sha256: of the file's bytes.
        counted: the tractogram that it was counted from, None for a map that was found as such.
        order: its axes on the cohort's grid, see `StorageOrder.as_list`; None: as they are stored.
        zeroed: kinds of values that are read as 0, see `clean_density`.
    """

    path: Path
    channel: int
    divisor: float
    sha256: str
    counted: CountedMap | None = None
    order: tuple[int, ...] | None = None
    zeroed: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, values: Mapping[str, Any]) -> DensityMap:
        """A map from what `as_dict` gave, such as in ``atlas.json``; without its tractogram.

        Raises:
            KeyError, TypeError, ValueError: the record isn't one.
        """
        order = values.get("order")
        return cls(
            Path(values["path"]),
            int(values["channel"]),
            float(values["divisor"]),
            str(values["sha256"]),
            order=None if order is None else tuple(order),
            zeroed=tuple(values.get("zeroed", ())),
        )

    def in_order(self, array: np.ndarray) -> np.ndarray:
        """Values ``(..., *spatial)`` of the file as they lie on the cohort's grid."""
        return array if self.order is None else StorageOrder.from_list(self.order).of_array(array)

    @property
    def origin(self) -> str:
        """The file in the dataset: the tractogram if there is one, else the map."""
        return str(self.path) if self.counted is None else self.counted.tractogram

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; what a map doesn't have is left out."""
        values = {**asdict(self), "path": str(self.path)}
        for name in ("counted", "order", "zeroed"):
            if not values[name]:
                del values[name]
        return values


@dataclass(frozen=True)
class Subject:
    """A usable subject; the density of a channel is the sum of its maps divided by their divisors.

    Attributes:
        name: of the subject.
        maps: its files.
        covariates: name and value of each covariate that the settings request.
        person: whose image it is, if a subject has several; empty: the subject's name.
    """

    name: str
    maps: tuple[DensityMap, ...]
    covariates: tuple[tuple[str, float | str], ...] = ()
    person: str = ""

    def item(self, coding: CovariateCoding | None = None) -> dict[str, Any]:
        """The subject as an item for dictionary transforms: lists with one entry per map.

        With a coding, ``covariates`` as well, one number per column; ``order`` and ``zeroed`` where
        the first map is stored in another order or values are read as 0.
        """
        item: dict[str, Any] = {
            "subject": self.name,
            "image": [str(one.path) for one in self.maps],
            "divisor": [one.divisor for one in self.maps],
            "channel": [one.channel for one in self.maps],
            "sha256": [one.sha256 for one in self.maps],
        }
        if self.maps and self.maps[0].order is not None:
            item["order"] = list(self.maps[0].order)  # the reader brings the others into its order
        kinds = sorted({kind for one in self.maps for kind in one.zeroed})
        if kinds:
            item["zeroed"] = kinds
        if coding is not None:
            item["covariates"] = coding.code(dict(self.covariates))
        return item


@dataclass(frozen=True, eq=False)
class Cohort:
    """Subjects that share one grid, and their mean.

    Attributes:
        subjects: the usable ones, sorted by name.
        rejected: subjects left out, with the reason.
        grid: the first subject's grid; all others are on it.
        crop: box around the support of all subjects, including the margin.
        mean_density: float32 ``(C, *crop.shape)``, mean of the normalised densities.
        normalisation: the method in use.
        pattern: of the layout in use.
        tracts: name per channel; empty if the only channel is the whole map.
        sums: per subject, the sum of its normalised density.
        without_map: folders of the dataset that contain no map.
        coding: of the subjects' covariates; None if the settings request none.
        labels: the subjects' label maps; None if the settings request none.
        label_names: of the labels that have one.
    """

    subjects: tuple[Subject, ...]
    rejected: tuple[Rejection, ...]
    grid: Grid
    crop: CropBox
    mean_density: np.ndarray
    normalisation: str
    pattern: str
    tracts: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()
    without_map: tuple[str, ...] = ()
    coding: CovariateCoding | None = None
    labels: SubjectImages | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)

    def datalist(self) -> list[dict[str, Any]]:
        """One dictionary per subject, see `Subject.item`."""
        return [subject.item(self.coding) for subject in self.subjects]

    def design(self) -> np.ndarray | None:
        """Coded covariates ``(N, columns)`` float32, in the order of the subjects."""
        if self.coding is None:
            return None
        return np.stack([self.coding.code(dict(one.covariates)) for one in self.subjects])

    def files(self) -> list[Path]:
        """Every map that a subject's density is made of, its tractogram and its labels."""
        return [*files_of(self.subjects), *(self.labels.paths() if self.labels else ())]

    def table(self) -> str:
        """The used and the rejected subjects, with reasons, as lines of text."""
        return subjects_table(self.subjects, self.rejected, self.without_map, self.pattern)

    def identity(self) -> str:
        """SHA-256 of everything that training depends on; independent of the dataset's location."""
        maps = [
            [subject.name, one.channel, one.divisor.hex(), one.sha256]
            for subject in self.subjects
            for one in subject.maps
        ]
        said: list[Any] = [self.normalisation, self.tracts, maps]
        if self.coding is not None:
            said.append([[one.name, one.covariates] for one in self.subjects])
        text = json.dumps(said, ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Everything except the mean, as plain JSON values."""
        return {
            "identity": self.identity(),
            "normalisation": self.normalisation,
            "pattern": self.pattern,
            "tracts": list(self.tracts),
            "grid": self.grid.as_dict(),
            "crop": {"start": list(self.crop.start), "stop": list(self.crop.stop)},
            "subjects": [
                {
                    "subject": subject.name,
                    "maps": [one.as_dict() for one in subject.maps],
                    **({"covariates": dict(subject.covariates)} if subject.covariates else {}),
                }
                for subject in self.subjects
            ],
            "rejected": [asdict(rejection) for rejection in self.rejected],
            "without_map": list(self.without_map),
            **({"labels": self.labels.as_dict()} if self.labels else {}),
        }


@dataclass(frozen=True, eq=False)
class NewSubjects:
    """Subjects to register to an existing atlas; checked against its grid.

    Attributes:
        subjects: the usable ones.
        rejected: subjects left out, with the reason.
        coding: of their covariates; None if the atlas has none.
        labels: their label maps; None if the settings request none.
        masks: their voxels that don't count; None if the settings request none.
        label_names: of the labels that have one.
    """

    subjects: tuple[Subject, ...]
    rejected: tuple[Rejection, ...] = field(default=())
    coding: CovariateCoding | None = None
    labels: SubjectImages | None = None
    masks: SubjectImages | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """As `Cohort.files`."""
        further = [one for one in (self.labels, self.masks) if one is not None]
        return [*files_of(self.subjects), *(path for one in further for path in one.paths())]

    def datalist(self) -> list[dict[str, Any]]:
        """As `Cohort.datalist`, with ``mask``, path and hash, of a subject that has one."""
        items = [subject.item(self.coding) for subject in self.subjects]
        masks = {} if self.masks is None else self.masks.files
        for item in items:
            mask = masks.get(item["subject"])
            if mask is not None:
                item["mask"] = [str(mask.path), mask.sha256]
        return items


# ---------------------------------------------------------------------------------------------
# One subject
# ---------------------------------------------------------------------------------------------


# ---------------------------------------------------------------------------------------------
# All subjects
# ---------------------------------------------------------------------------------------------


def files_of(subjects: Sequence[Subject]) -> list[Path]:
    """Maps, and the tractograms that they were counted from."""
    maps = [one for subject in subjects for one in subject.maps]
    counted = [Path(one.counted.tractogram) for one in maps if one.counted is not None]
    return [one.path for one in maps] + counted


def subjects_table(
    subjects: Sequence[Subject],
    rejected: Sequence[Rejection],
    without_map: Sequence[str],
    pattern: str,
) -> str:
    count = f"{len(subjects)} subjects found, {len(rejected)} rejected"
    lines = [f"{count} (maps at {shown(pattern)})"]
    rows = [(one.name, "found", ", ".join(part.origin for part in one.maps)) for one in subjects]
    rows += [(one.subject, "rejected", f"{one.path}: {one.reason}") for one in rejected]
    rows = [(shown(name), status, shown(text)) for name, status, text in rows]
    width = max((len(name) for name, _, _ in rows), default=0)
    lines += [f"  {name:<{width}}  {status:<8}  {text}" for name, status, text in sorted(rows)]
    if without_map:
        lines.append(f"  folders without a map: {some_names(without_map, most=20)}")
    return "\n".join(lines)
