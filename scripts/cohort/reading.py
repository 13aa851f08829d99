"""Reads a cohort from a dataset folder and checks that its subjects share one grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scripts.cohort.cohort import Cohort, subjects_table
from scripts.cohort.covariates import CovariateCoding
from scripts.cohort.discovery import (
    advice_where_maps_are,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.inspection import inspect_all
from scripts.cohort.label_maps import find_label_maps, names_of_labels
from scripts.cohort.patterns import Rejection
from scripts.cohort.remarks import MOST_NAMES
from scripts.cohort.running_sum import CohortSum
from scripts.cohort.subject_covariates import check_coded, split_by_covariates, with_covariates
from scripts.cohort.tractogram_maps import counting_for
from scripts.errors import CohortError, some_names
from scripts.runtime.input_files import check_named
from scripts.settings.cohort import CohortRequest

__all__ = ["Progress", "read_cohort"]

logger = logging.getLogger(__name__)


Progress = Callable[[int, int, str], None]
"""Called with the number of finished subjects, their total and the name of the last one."""


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
    cohort_sum = CohortSum(request)
    discovery, known = split_by_covariates(discovery, root, request)
    rejected = list(discovery.rejected)
    counting = counting_for(discovery.candidates, request, root)
    for done, (candidate, result) in enumerate(
        inspect_all(discovery.candidates, request, counting), start=1
    ):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            cohort_sum.add(result)
        if progress is not None:
            progress(done, len(discovery.candidates), candidate.name)

    subjects = tuple(cohort_sum.subjects)
    left_out = tuple(sorted(rejected, key=lambda one: one.subject))
    table = subjects_table(subjects, left_out, discovery.without_map, discovery.pattern)
    if len(subjects) < request.min_subjects or cohort_sum.grid is None or cohort_sum.box is None:
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
        logger.warning("folders without a map: %s", some_names(discovery.without_map, MOST_NAMES))
    cohort_sum.warn(request)
    if request.covariates:
        subjects = with_covariates(subjects, known)
        people = [dict(subject.covariates) for subject in subjects]
        coding = coding or CovariateCoding.of_cohort(people, request)
        check_coded(subjects, coding)
    crop = cohort_sum.box.grown(request.cohort.margin, cohort_sum.grid.shape)
    mean = cohort_sum.box.within(crop).paste(cohort_sum.total / len(subjects), crop.shape)
    labels = find_label_maps(subjects, root if files is None else Path(), cohort_sum.grid, request)
    logger.info("cohort of %d subjects, %d left out", len(subjects), len(left_out))
    return Cohort(
        subjects=subjects,
        rejected=left_out,
        grid=cohort_sum.grid,
        crop=crop,
        mean_density=mean.astype(np.float32),
        normalisation=request.cohort.normalisation,
        pattern=discovery.pattern,
        tracts=discovery.tracts,
        sums=tuple(cohort_sum.sums),
        without_map=discovery.without_map,
        coding=coding,
        labels=labels,
        label_names=names_of_labels(root, request) if labels is not None else {},
    )
