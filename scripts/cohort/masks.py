"""Voxels of a subject that don't count, such as a lesion: they are read as 0 from the start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from scripts.cohort.cohort import DensityMap, Subject
from scripts.cohort.density import CleaningRule, clean_density, density_divisor, load_density
from scripts.cohort.subject_images import SubjectImage, SubjectImages
from scripts.errors import CohortError
from scripts.settings.cohort import CohortRequest
from scripts.spatial.density_resampling import resample_density
from scripts.spatial.grid import Grid
from scripts.spatial.mask_rules import warn_if_mostly_covered
from scripts.spatial.volumes import read_grid

__all__ = ["mask_on_grid", "subjects_without_masked", "valid_voxels"]

_SAME = 0.01  # voxels: corners of one grid are no farther apart


def mask_on_grid(mask: SubjectImage, grid: Grid, key: str) -> np.ndarray:
    """Voxels of a grid that a mask covers, by the nearest voxel, ``(*grid.shape)`` bool.

    Raises:
        CohortError: the file has changed since it was checked.
    """
    values = SubjectImages(key, {"": mask}, grid, _SAME, resample=True).read("")
    assert values is not None
    return np.asarray(values != 0)


def valid_voxels(subject: Subject, masks: SubjectImages) -> np.ndarray | None:
    """Voxels of the atlas's grid that count, ``(*grid.shape)`` bool; None: all of them.

    Where a subject's maps are resampled, a voxel that any masked one contributes to doesn't count.

    Args:
        subject: with its maps.
        masks: of all subjects, with the atlas's grid.
    """
    mask = masks.files.get(subject.name)
    if mask is None:
        return None
    path = subject.maps[0].path
    map_grid = _flat(read_grid(path), len(masks.grid.shape)) if masks.resample else masks.grid
    on_atlas = map_grid.same_as(masks.grid, masks.tolerance) is None
    if on_atlas or map_grid.order_onto(masks.grid, masks.tolerance) is not None:
        return ~mask_on_grid(mask, masks.grid, masks.key)
    covered = mask_on_grid(mask, map_grid, masks.key).astype(np.float64)[None]
    return np.asarray(resample_density(covered, map_grid.affine, masks.grid, "none")[0] == 0)


def subjects_without_masked(
    subjects: Iterable[Subject], masks: SubjectImages, request: CohortRequest
) -> tuple[Subject, ...]:
    """Subjects whose divisors don't depend on masked voxels.

    Raises:
        CohortError: a mask covers the whole density of a subject.
    """
    return tuple(
        one if one.name not in masks.files else _without_masked(one, masks, request)
        for one in subjects
    )


def _without_masked(subject: Subject, masks: SubjectImages, request: CohortRequest) -> Subject:
    method, mask = request.cohort.normalisation, masks.files[subject.name]
    rule = CleaningRule(
        request.cohort.nan, request.cohort.negative, request.option("nan"),
        request.option("negative"),
    )  # fmt: skip
    maps: list[DensityMap] = []
    anything = False
    counted = whole = 0
    for one in subject.maps:
        loaded = load_density(one.path)
        data, _, _ = clean_density(one.path, loaded.data, rule)
        whole += int(np.count_nonzero(data))
        data = np.where(mask_on_grid(mask, loaded.grid, masks.key), 0, data)
        counted += int(np.count_nonzero(data))
        divisor = one.divisor
        if data.any():
            anything = True
            if method in ("max", "streamline_density"):
                divisor = density_divisor(method, one.path, data, request.option("normalisation"))
        maps.append(replace(one, divisor=divisor))
    if not anything:
        raise CohortError(
            f"{mask.path} ({masks.key}): covers the whole density of subject {subject.name}; the "
            "mask must be above 0 only where voxels don't count"
        )
    warn_if_mostly_covered(
        f"{mask.path} ({masks.key})", whole, counted,
        f"the voxels with density of subject {subject.name}, which then don't count",
    )  # fmt: skip
    return replace(subject, maps=tuple(maps))


def _flat(grid: Grid, spatial_dims: int) -> Grid:
    """A plane's grid without its third axis."""
    if spatial_dims == 2 and grid.shape[2] == 1:
        return Grid(grid.shape[:2], grid.affine, grid.header)
    return grid
