"""Reads new subjects and checks them against an atlas's grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from scripts.cohort.cohort import NewSubjects, Subject, subjects_table
from scripts.cohort.covariates import CovariateCoding, Values
from scripts.cohort.discovery import (
    ONE_BY_ONE,
    Discovery,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.inspection import Inspection, inspect_all
from scripts.cohort.label_maps import find_label_maps
from scripts.cohort.masks import subjects_without_masked
from scripts.cohort.patterns import Rejection
from scripts.cohort.remarks import Remarks, log_reordering
from scripts.cohort.subject_covariates import check_coded, split_by_covariates, with_covariates
from scripts.cohort.subject_images import find_subject_images
from scripts.cohort.tractogram_maps import counting_for
from scripts.errors import CohortError
from scripts.runtime.file_names import is_image_name
from scripts.runtime.input_files import check_named
from scripts.settings.cohort import CohortRequest, SubjectSearch
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.overlap import grids_apart
from scripts.tractograms import is_tractogram

__all__ = ["read_new_subjects"]

logger = logging.getLogger(__name__)


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
        discovery, known = split_by_covariates(discovery, root, request)
    elif at is not None:
        known = {candidate.name: at for candidate in discovery.candidates}
    subjects: list[Subject] = []
    remarks = Remarks()
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
            log_reordering([result.subject.name], "the atlas's")
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
        described = with_covariates(subjects, known)
        check_coded(described, coding)
    root = folder or Path()
    labels = find_label_maps(described, root, grid, request, new=True, required=labelled)
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
    files = [Path(path) for path in source]
    for path in files:
        if path.is_dir() and not is_tractogram(path):  # an unpacked TRX is a folder
            raise CohortError(f"{path}: is a folder, not a map; give it as --dataset_dir")
    return candidates_from_files(files, search)


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
