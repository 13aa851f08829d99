"""The label maps of the subjects that are read, and the names of their labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from scripts.cohort.cohort import Subject
from scripts.cohort.label_names import read_label_names
from scripts.cohort.subject_images import SubjectImages, find_subject_images
from scripts.errors import some_names
from scripts.settings.cohort import CohortRequest
from scripts.spatial.grid import Grid

__all__ = ["find_label_maps", "names_of_labels"]

logger = logging.getLogger(__name__)


def names_of_labels(root: Path, request: CohortRequest) -> dict[int, str]:
    """Name by label, from the table that a request names; empty if it names none."""
    path = request.cohort.label_names
    return {} if path is None else read_label_names(root / path, request.key("label_names"))


def find_label_maps(
    subjects: Sequence[Subject],
    root: Path,
    grid: Grid,
    request: CohortRequest,
    new: bool = False,
    required: bool = True,
) -> SubjectImages | None:
    """The label maps that a request names; None if it names none.

    Args:
        subjects: whose maps are looked for.
        root: the folder that the request's pattern starts from.
        grid: of the cohort or atlas.
        request: the pattern, and the tolerance of grids.
        new: subjects that are registered to an atlas, whose maps may be resampled.
        required: at least one subject must have a map.
    """
    if request.cohort.labels is None:
        return None
    images = find_subject_images(
        request.cohort.labels,
        root,
        [subject.name for subject in subjects],
        grid,
        request.key("labels"),
        request.cohort.grid_tolerance,
        resample=new and request.cohort.resample,
        required=required,
    )
    unlabelled = [name for name, one in images.files.items() if one.empty]
    if unlabelled:
        logger.warning(
            "%s: the label map is 0 everywhere, so it has no label, for %s",
            request.key("labels"), some_names(unlabelled, most=10),
        )  # fmt: skip
    return images
