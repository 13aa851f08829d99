"""One more image per subject, such as its labels, by a pattern and on the cohort's grid."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import CohortError, some_names
from scripts.runtime.ordered_map import ordered_map, reading_threads
from scripts.runtime.watched_files import changed
from scripts.spatial.grid import Grid
from scripts.spatial.transforms import resample as resampled
from scripts.spatial.volumes import read_hashed_labels

__all__ = ["SubjectImage", "SubjectImages", "find_subject_images"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubjectImage:
    """A file that was read and checked.

    Attributes:
        path: absolute.
        sha256: of its bytes.
        empty: whether it is 0 everywhere.
    """

    path: Path
    sha256: str
    empty: bool = False

    def as_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"path": str(self.path), "sha256": self.sha256}


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """The images of one kind, by subject.

    Attributes:
        key: the setting that names them, for messages.
        files: by the subject's name; a subject without a file is missing.
        grid: of the cohort, which `read` brings them onto.
        tolerance: how far corners of equal grids may lie apart, voxels.
        resample: bring images from other grids onto this one, by the nearest voxel.
    """

    key: str
    files: Mapping[str, SubjectImage]
    grid: Grid
    tolerance: float
    resample: bool = False

    def paths(self) -> list[Path]:
        """All files."""
        return [one.path for one in self.files.values()]

    def as_dict(self) -> dict[str, Any]:
        """Path and hash by subject, as plain JSON values."""
        return {name: one.as_dict() for name, one in self.files.items()}

    def read(self, subject: str) -> np.ndarray | None:
        """A subject's whole numbers ``(*grid.shape)`` on the grid; None: it has no file.

        Raises:
            CohortError: the file has changed since it was checked.
        """
        one = self.files.get(subject)
        if one is None:
            return None
        values, sha256 = _read(one.path, self)
        if sha256 != one.sha256:
            raise changed(one.path)
        return values


def find_subject_images(
    pattern: str,
    root: Path,
    names: Iterable[str],
    grid: Grid,
    key: str,
    tolerance: float,
    resample: bool = False,
    required: bool = True,
) -> SubjectImages:
    """Look for every subject's image, and check each file that exists.

    Args:
        pattern: path with ``{subject}``, relative to ``root`` or absolute.
        root: of relative paths.
        names: of the subjects; each can be a file name.
        grid: of the cohort.
        key: the setting that gave the pattern, for messages.
        tolerance: see `SubjectImages`.
        resample: see `SubjectImages`.
        required: at least one subject must have a file; the others are named in a warning.

    Raises:
        CohortError: a file can't be read, isn't made of whole numbers or lies on another grid, or
            no subject has one.
    """
    names = list(names)
    empty = SubjectImages(key, {}, grid, tolerance, resample)
    paths = {name: (root / pattern.replace("{subject}", name)).absolute() for name in names}
    present = [name for name, path in paths.items() if os.path.lexists(path)]

    def checked(name: str) -> SubjectImage:
        values, sha256 = _read(paths[name], empty)
        return SubjectImage(paths[name], sha256, not values.any())

    images = dict(ordered_map(checked, present, reading_threads()))
    missing = [name for name in names if name not in images]
    if required and not images:
        example = root / pattern.replace("{subject}", names[0] if names else "{subject}")
        raise CohortError(
            f"{key} = {pattern!r}: no subject has such a file (there is no {example}); must be the "
            "path of each subject's image, relative to the dataset folder or absolute, or null"
        )
    if required and missing:
        logger.warning("%s: no file for %s", key, some_names(missing, most=10))
    return SubjectImages(key, images, grid, tolerance, resample)


def _read(path: Path, images: SubjectImages) -> tuple[np.ndarray, str]:
    """Whole numbers of a file on the grid, and the hash of its bytes."""
    values, file_grid, sha256 = read_hashed_labels(path)
    if len(values) != 1:
        raise CohortError(f"{path} ({images.key}): has {len(values)} volumes; must have one")
    labels, grid = _whole(path, values[0], images.key), images.grid
    if len(grid.shape) == 2 and labels.shape[2] == 1:
        labels, file_grid = (
            labels[:, :, 0],
            Grid(file_grid.shape[:2], file_grid.affine, file_grid.header),
        )
    difference = file_grid.same_as(grid, images.tolerance)
    if difference is None:
        return labels, sha256
    order = file_grid.order_onto(grid, images.tolerance)
    if order is not None:
        return np.ascontiguousarray(order.of_array(labels)), sha256
    if not images.resample or labels.ndim != len(grid.shape):
        raise CohortError(
            f"{path} ({images.key}): is not on the grid of the density maps: {difference}; "
            "resample it there first, by the nearest voxel (verb warp)"
        )
    return resampled(labels[None], file_grid, (), grid, order=0)[0], sha256


def _whole(path: Path, values: np.ndarray, key: str) -> np.ndarray:
    """Labels as integers.

    Raises:
        CohortError: a value isn't whole.
    """
    if values.dtype.kind in "iu":
        return values
    wrong = values[values != np.rint(values)]
    if wrong.size:
        raise CohortError(
            f"{path} ({key}): contains the value {wrong.flat[0]:g}; labels and masks must be whole "
            "numbers"
        )
    if values.size and np.abs(values).max() >= 2.0**63:
        raise CohortError(f"{path} ({key}): contains a label beyond 64 bits")
    return values.astype(np.int64)
