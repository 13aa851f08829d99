"""Reads a cohort, or new subjects, from a dataset folder and checks them against one grid."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from scripts.cohort.cohort import Cohort, NewSubjects, Subject, subjects_table
from scripts.cohort.covariates import CovariateCoding, Values, read_participants
from scripts.cohort.density import (
    waytotal_file,
)
from scripts.cohort.discovery import (
    ONE_BY_ONE,
    Discovery,
    advice_where_maps_are,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.inspection import Inspection, inspect_all
from scripts.cohort.label_names import read_label_names
from scripts.cohort.masks import subjects_without_masked
from scripts.cohort.patterns import Rejection
from scripts.cohort.subject_images import SubjectImages, find_subject_images
from scripts.cohort.tractogram_maps import counting_for
from scripts.errors import CohortError, ConfigurationError, some_names
from scripts.runtime.file_names import is_image_name
from scripts.runtime.input_files import check_named
from scripts.settings.cohort import CohortRequest, SubjectSearch
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.overlap import grids_apart
from scripts.tractograms import is_tractogram

__all__ = ["Progress", "read_cohort", "read_new_subjects"]

logger = logging.getLogger(__name__)


Progress = Callable[[int, int, str], None]
"""Called with the number of finished subjects, their total and the name of the last one."""

_MASK = re.compile(r"(?:^|[^A-Za-z])mask(?:$|[^A-Za-z])", re.IGNORECASE)
_NAMED = 20  # names that a message lists
_SCALE_RATIO = 50  # between sums of normalised maps: beyond it counts were mixed with densities


def read_cohort(
    dataset_dir: str | Path,
    request: CohortRequest,
    progress: Progress | None = None,
    files: Sequence[Path] | None = None,
    coding: CovariateCoding | None = None,
) -> Cohort:
    """Find, read and check a cohort in one pass.

    Every map is read once; memory doesn't grow with the number of subjects. Subjects that can't be
    used are left out, with the reason.

    Args:
        dataset_dir: the dataset folder.
        request: where subjects are, how to read their maps, how many are needed.
        progress: called after each subject.
        files: the maps one by one, instead of the folder.
        coding: of a model whose covariates the subjects have; None: computed from the cohort.

    Returns:
        The cohort; it doesn't depend on the order in which files are read.

    Raises:
        CohortError: no or too few usable subjects, subjects on different grids, or several
            unexplained runs of one subject.
        ConfigurationError: tracts, channels and the dataset don't match.
    """
    if files is None:
        check_named(dataset_dir, "dataset_dir")
    root = Path(dataset_dir).absolute()
    source = f"dataset folder {root}" if files is None else f"the list of {len(files)} maps"
    search = request.search
    discovery = (
        find_subjects(root, search) if files is None else candidates_from_files(files, search)
    )
    if not discovery.candidates and not discovery.rejected:
        advice = "" if files is not None else advice_where_maps_are(root, search, discovery)
        raise CohortError(
            f"no subject found in {source}: no map at {discovery.pattern}{advice} "
            f"(see {search.option('layout')} and {search.option('pattern')})"
        )
    pool = _Pool(request)
    discovery, known = _with_covariates(discovery, root, request)
    rejected = list(discovery.rejected)
    counting = counting_for(discovery.candidates, request, root)
    for done, (candidate, result) in enumerate(
        inspect_all(discovery.candidates, request, counting), start=1
    ):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            pool.add(result)
        if progress is not None:
            progress(done, len(discovery.candidates), candidate.name)

    subjects = tuple(pool.subjects)
    left_out = tuple(sorted(rejected, key=lambda one: one.subject))
    table = subjects_table(subjects, left_out, discovery.without_map, discovery.pattern)
    if len(subjects) < request.min_subjects or pool.grid is None or pool.box is None:
        raise CohortError(
            f"{len(subjects)} usable subjects in {source}, fewer than "
            f"{request.key('min_subjects')} = {request.min_subjects}",
            *table.split("\n"),
        )
    for rejection in left_out:
        logger.warning(
            "subject %s is left out: %s: %s", rejection.subject, rejection.path, rejection.reason
        )
    if discovery.without_map:
        logger.warning("folders without a map: %s", some_names(discovery.without_map, _NAMED))
    pool.warn(request)
    if request.covariates:
        subjects = _described(subjects, known)
        people = [dict(subject.covariates) for subject in subjects]
        coding = coding or CovariateCoding.of_cohort(people, request)
        _check_coded(subjects, coding)
    crop = pool.box.grown(request.cohort.margin, pool.grid.shape)
    mean = pool.box.within(crop).paste(pool.total / len(subjects), crop.shape)
    labels = _labels(subjects, root if files is None else Path(), pool.grid, request)
    logger.info("cohort of %d subjects, %d left out", len(subjects), len(left_out))
    return Cohort(
        subjects=subjects,
        rejected=left_out,
        grid=pool.grid,
        crop=crop,
        mean_density=mean.astype(np.float32),
        normalisation=request.cohort.normalisation,
        pattern=discovery.pattern,
        tracts=discovery.tracts,
        sums=tuple(pool.sums),
        without_map=discovery.without_map,
        coding=coding,
        labels=labels,
        label_names=_label_names(root, request) if labels is not None else {},
    )


def _label_names(root: Path, request: CohortRequest) -> dict[int, str]:
    path = request.cohort.label_names
    return {} if path is None else read_label_names(root / path, request.key("label_names"))


def _labels(
    subjects: Sequence[Subject],
    root: Path,
    grid: Grid,
    request: CohortRequest,
    new: bool = False,
    required: bool = True,
) -> SubjectImages | None:
    """The label maps that a request names."""
    if request.cohort.labels is None:
        return None
    return find_subject_images(
        request.cohort.labels,
        root,
        [subject.name for subject in subjects],
        grid,
        request.key("labels"),
        request.cohort.grid_tolerance,
        resample=new and request.cohort.resample,
        required=required,
    )


def _with_covariates(
    discovery: Discovery, root: Path, request: CohortRequest
) -> tuple[Discovery, Mapping[str, Values]]:
    """Split subjects into those with all covariates and those left out, with the reason."""
    if not request.covariates:
        return discovery, {}
    people = read_participants(
        root / request.cohort.participants,
        request.covariates,
        request.option("participants"),
        request.option("categorical_covariates"),
    )
    usable, rejected = [], list(discovery.rejected)
    rows: dict[str, str] = {}  # by image: the name in the table, the image's or the person's
    for candidate in discovery.candidates:
        name = candidate.name
        if candidate.person and not people.knows(name):
            name = candidate.person
        rows[candidate.name] = name
        reason = people.reason_against(name)
        if reason is None:
            usable.append(candidate)
        else:
            rejected.append(Rejection(candidate.name, str(people.path), reason))
    of_rows = people.values(
        list(dict.fromkeys(rows[one.name] for one in usable)), request.categorical_covariates
    )
    known = {one.name: of_rows[rows[one.name]] for one in usable}
    return replace(discovery, candidates=tuple(usable), rejected=tuple(rejected)), known


def _described(subjects: Sequence[Subject], known: Mapping[str, Values]) -> tuple[Subject, ...]:
    return tuple(replace(one, covariates=tuple(known[one.name].items())) for one in subjects)


def _check_coded(subjects: Sequence[Subject], coding: CovariateCoding) -> None:
    """Check that every subject can be coded; warn about values outside the coding's range.

    Raises:
        CohortError: a value can't be coded; the message names subject, covariate and value.
    """
    for subject in subjects:
        values = dict(subject.covariates)
        try:
            coding.code(values)
        except ConfigurationError as error:
            raise CohortError(f"subject {subject.name}: {error}") from None
        for sentence in coding.beyond(values):
            logger.warning("subject %s: %s", subject.name, sentence)


def read_new_subjects(
    source: str | Path | Sequence[str | Path],
    request: CohortRequest,
    grid: Grid,
    crop: CropBox,
    coding: CovariateCoding | None = None,
    at: Values | None = None,
    labelled: bool = False,
) -> NewSubjects:
    """Read and check subjects for registration to an existing atlas.

    Args:
        source: a dataset folder, or one or several files (``.nii``, ``.nii.gz`` or tractograms);
            tractograms are counted on the atlas's grid.
        request: as for `read_cohort`; ``min_subjects`` is ignored.
        grid: of the atlas.
        crop: of the atlas; logs a warning with the share of a density outside it.
        coding: of the atlas's covariates; None if it has none.
        at: covariates of all these subjects; None: from the participants' table (for files listed
            one by one, relative to the current folder).
        labelled: at least one subject must have a label map, if the request names such files.

    Raises:
        CohortError: no subject can be used, none has a label map though one must, or one is on
            another grid and ``cohort.resample`` is false.
    """
    discovery = _find_new(source, request.search)
    known: Mapping[str, Values] = {}
    if coding is not None and at is None:
        root = Path() if discovery.pattern == ONE_BY_ONE else Path(str(source))
        discovery, known = _with_covariates(discovery, root, request)
    elif at is not None:
        known = {candidate.name: at for candidate in discovery.candidates}
    subjects: list[Subject] = []
    remarks = _Remarks()
    rejected = list(discovery.rejected)
    folder = Path(source).absolute() if _is_folder(source) else None
    counting = counting_for(discovery.candidates, request, folder, grid)
    for _, result in inspect_all(discovery.candidates, request, counting):
        if isinstance(result, Rejection):
            rejected.append(result)
            continue
        path = result.subject.maps[0].path
        tolerance = request.cohort.grid_tolerance
        difference = result.grid.same_as(grid, tolerance)
        if difference is not None and (turned := result.on_grid_of(grid, tolerance)) is not None:
            result, difference = turned, None
            _tell_of_order([result.subject.name], "the atlas's")
        if difference is not None and grids_apart(result.grid, grid):
            raise CohortError(
                f"subject {result.subject.name} ({path}) shares no space with the atlas: "
                f"{difference}; register its map to the atlas's space first (verbs refine and warp)"
            )
        if difference is not None and not request.cohort.resample:
            raise CohortError(
                f"subject {result.subject.name} ({path}) is not on the atlas's grid: {difference}; "
                "a map must have the atlas's shape and affine; to resample it, set "
                f"--{request.option('resample')} true"
            )
        if difference is None:
            _warn_outside(result, crop)
        remarks.add(result.subject.name, result.remarks)
        subjects.append(result.subject)
    remarks.warn()
    if not subjects:
        table = subjects_table((), tuple(rejected), discovery.without_map, discovery.pattern)
        raise CohortError("no usable subject", *table.split("\n"))
    for rejection in rejected:
        logger.warning(
            "subject %s is left out: %s: %s", rejection.subject, rejection.path, rejection.reason
        )
    described = tuple(subjects)
    if coding is not None:
        described = _described(subjects, known)
        _check_coded(described, coding)
    root = folder or Path()
    labels = _labels(described, root, grid, request, new=True, required=labelled)
    masks = None
    if request.cohort.mask is not None:
        masks = find_subject_images(
            request.cohort.mask,
            root,
            [subject.name for subject in described],
            grid,
            request.key("mask"),
            request.cohort.grid_tolerance,
            resample=request.cohort.resample,
        )
        described = subjects_without_masked(described, masks, request)
    return NewSubjects(described, tuple(rejected), coding, labels, masks)


def _find_new(
    source: str | Path | Sequence[str | Path],
    search: SubjectSearch,
) -> Discovery:
    if isinstance(source, str | Path):
        check_named(source, "dataset_dir")
        if _is_folder(source):
            return find_subjects(Path(source).absolute(), search)
        source = [source]
    return candidates_from_files([Path(path) for path in source], search)


def _is_folder(source: str | Path | Sequence[str | Path]) -> TypeGuard[str | Path]:
    """Whether a path is a dataset folder rather than a file; a map's suffix makes it a file."""
    if not isinstance(source, str | Path):
        return False
    return not (is_image_name(source) or is_tractogram(source))


def _warn_outside(result: Inspection, crop: CropBox) -> None:
    """Log the share of a density that is outside the atlas's box."""
    inner = CropBox(
        tuple(map(max, result.box.start, crop.start)), tuple(map(min, result.box.stop, crop.stop))
    )
    if inner == result.box:
        return
    whole = float(result.density.sum())
    apart = any(size <= 0 for size in inner.shape)
    inside = 0.0 if apart else float(inner.within(result.box).crop(result.density).sum())
    if not inside:
        logger.warning(
            "subject %s (%s) shares no space with the atlas, so its result will mean nothing; "
            "register its map to the atlas's space first (verbs refine and warp)",
            result.subject.name,
            result.subject.maps[0].path,
        )
    logger.warning(
        "subject %s has %.2g %% of its density outside the atlas's box; that part is cut off",
        result.subject.name,
        100 * (1 - inside / whole),
    )


class _Remarks:
    """What isn't wrong with subjects but worth a warning: one with the same text."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[str]] = {}

    def add(self, subject: str, remarks: Iterable[str]) -> None:
        """Note a subject's remarks."""
        for remark in dict.fromkeys(remarks):
            self._subjects.setdefault(remark, []).append(subject)

    def warn(self) -> None:
        """Log them."""
        for remark, names in self._subjects.items():
            several = "s" if len(names) > 1 else ""
            logger.warning("subject%s %s: %s", several, some_names(names, _NAMED), remark)


def _tell_of_order(names: Sequence[str], whose: str) -> None:
    logger.info(
        "stored in another axis order and reordered to %s, exactly: %s",
        whose,
        some_names(names, _NAMED),
    )


class _Pool:
    """Running sum over subjects, on the box around all supports so far."""

    def __init__(self, request: CohortRequest) -> None:
        self.tolerance = request.cohort.grid_tolerance
        self.tolerance_option = request.option("grid_tolerance")
        self.exclude_option = request.option("exclude")
        self.subjects: list[Subject] = []
        self.sums: list[float] = []
        self.remarks = _Remarks()
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
            _tell_of_order(self.turned, f"subject {self.subjects[0].name}'s")
        self._warn_of_masks()
        for names in self.contents.values():
            if len(names) > 1:
                logger.warning(
                    "subjects %s have the same density, voxel by voxel: is one of them a copy?",
                    some_names(names, _NAMED),
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
                some_names(suspects, _NAMED),
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
