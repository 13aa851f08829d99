"""The sum of a cohort's densities on one grid, and warnings about subjects that may spoil it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scripts.cohort.cohort import Subject
from scripts.cohort.density import waytotal_file
from scripts.cohort.inspection import Inspection
from scripts.cohort.remarks import MOST_NAMES, Remarks, log_reordering
from scripts.errors import CohortError, some_names
from scripts.settings.cohort import CohortRequest
from scripts.spatial.grid import CropBox, Grid

__all__ = ["CohortSum"]

logger = logging.getLogger(__name__)

_MASK = re.compile(r"(?:^|[^A-Za-z])mask(?:$|[^A-Za-z])", re.IGNORECASE)
_SCALE_RATIO = 50  # between sums of normalised maps: beyond it counts were mixed with densities


class CohortSum:
    """Running sum over subjects, on the box around all supports so far."""

    def __init__(self, request: CohortRequest) -> None:
        self.tolerance = request.cohort.grid_tolerance
        self.tolerance_option = request.option("grid_tolerance")
        self.exclude_option = request.option("exclude")
        self.subjects: list[Subject] = []
        self.sums: list[float] = []
        self.remarks = Remarks()
        self.turned: list[str] = []
        self.masks: list[str] = []
        self.contents: dict[str, list[str]] = {}
        self.grid: Grid | None = None
        self.box: CropBox | None = None
        self.total = np.zeros(0)

    def add(self, inspection: Inspection) -> None:
        """Add a subject.

        Raises:
            CohortError: it is on another grid than the first one.
        """
        name = inspection.subject.name
        if self.grid is None or self.box is None:
            self.grid, self.box = inspection.grid, inspection.box
            self.total = np.zeros_like(inspection.density)
        difference = inspection.grid.same_as(self.grid, self.tolerance)
        turned = None
        if difference is not None:
            turned = inspection.on_grid_of(self.grid, self.tolerance)
        if turned is not None:
            inspection = turned
            self.turned.append(name)
        elif difference is not None:
            first, other = self.subjects[0], inspection.subject
            raise CohortError(
                f"subjects {other.name} ({other.maps[0].path}) and {first.name} "
                f"({first.maps[0].path}) are on different grids: {difference}; all subjects must "
                "have the same shape and affine; nothing is resampled silently: bring them onto "
                "one grid first (verbs warp and align), or raise "
                f"--{self.tolerance_option} if this is rounding"
            )
        union = self.box.union(inspection.box)
        if union != self.box:
            self.total = self.box.within(union).paste(self.total, union.shape)
            self.box = union
        inspection.box.within(union).crop(self.total)[...] += inspection.density
        if inspection.is_mask:
            self.masks.append(name)
        self.subjects.append(inspection.subject)
        self.sums.append(float(inspection.density.sum()))
        self.remarks.add(name, inspection.remarks)
        self.contents.setdefault(inspection.content, []).append(name)

    def warn(self, request: CohortRequest) -> None:
        """Log everything that doesn't stop the run but may spoil the atlas.

        Raises:
            CohortError: two subjects were divided by the same waytotal file.
        """
        self.remarks.warn()
        if self.turned:
            log_reordering(self.turned, f"subject {self.subjects[0].name}'s")
        self._warn_of_masks()
        for names in self.contents.values():
            if len(names) > 1:
                logger.warning(
                    "subjects %s have the same density, voxel by voxel: is one of them a copy?",
                    some_names(names, MOST_NAMES),
                )
        low, high = int(np.argmin(self.sums)), int(np.argmax(self.sums))
        ratio = self.sums[high] / self.sums[low]
        if ratio > _SCALE_RATIO:
            logger.warning(
                "the density of subject %s sums to %.4g, %.0f times as much as subject %s's "
                "(%.4g): were counts mixed with densities?",
                self.subjects[high].name,
                self.sums[high],
                ratio,
                self.subjects[low].name,
                self.sums[low],
            )
        if request.cohort.normalisation == "waytotal":
            _check_waytotals(self.subjects)

    def _warn_of_masks(self) -> None:
        """Name subjects that are masks among densities, by their values or by their name."""
        named = [one.name for one in self.subjects if _MASK.search(one.name)]
        masks = self.masks if len(self.masks) < len(self.subjects) else []
        suspects = sorted({*masks, *(named if len(named) < len(self.subjects) else ())})
        if suspects:
            logger.warning(
                "%s: a mask among densities? %s; leave it out with --%s if it isn't a subject's",
                some_names(suspects, MOST_NAMES),
                "its values are only 0 and 1" if masks else "its name suggests it",
                self.exclude_option,
            )


def _check_waytotals(subjects: Iterable[Subject]) -> None:
    users: dict[Path, str] = {}
    for subject in subjects:
        for one in subject.maps:
            if one.path.name.startswith("densityNorm."):
                continue
            file = waytotal_file(one.path)
            if users.setdefault(file, subject.name) != subject.name:
                raise CohortError(
                    f"{file} can't be the waytotal of both subject {users[file]} and subject "
                    f"{subject.name}; maps that share a folder need <map>_waytotal files"
                )
