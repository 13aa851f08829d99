"""Reading of a small cohort, for the tests of this room."""

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.cohort import read_cohort
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.cohort import CohortRequest


def config(**values) -> CohortRequest:
    return LearnedAtlasConfig.load(values).cohort_request()


def read(dataset, **values):
    return read_cohort(dataset.folder, config(**values))


def names(cohort) -> list[str]:
    return [subject.name for subject in cohort.subjects]


def reasons(cohort) -> dict[str, str]:
    return {one.subject: one.reason for one in cohort.rejected}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def affine(flip: int = 1, shift: float = 0.0) -> np.ndarray:
    return np.array(
        [[-2.0 * flip, 0, 0, 90 + shift], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
    )
