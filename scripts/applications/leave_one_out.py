"""Leave-one-out: the average of all other subjects, in each subject's space.

Each subject's density is warped into template space and summed. For each subject, its share is
subtracted from the sum, and the rest is warped into the subject's space. Each way interpolates an
image once. Memory is one sum per template and one subject, whatever the size of the cohort.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.cohort import Cohort, Subject
from scripts.cohort.density import subject_density
from scripts.errors import CohortError
from scripts.publishing.published_atlas import sha256_of
from scripts.runtime.input_files import read_json
from scripts.runtime.inside import inside
from scripts.runtime.progress import progress_bar
from scripts.spatial.fields import field_names
from scripts.spatial.grid import Grid
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.transforms import Transform, resample
from scripts.spatial.volumes import read_grid

__all__ = ["OthersAverage"]

_ADVICE = "or compare without it: --tract_similarity#leave_one_out false"


@dataclass(frozen=True)
class _Passage:
    """Transforms from a subject's points to the template's, and back."""

    template: int
    to_template: tuple[TransformFile, ...]
    to_subject: tuple[TransformFile, ...]


class OthersAverage:
    """For each subject the average of the others, warped through the template.

    The transforms are those that warped the atlas into the subject's space, as ``carried.json``
    beside it records: the bundle's fields, with both directions in one folder, and affines, which
    can be inverted. An averaging atlas needs none. In a mixture the subjects of the same template
    are averaged.

    Args:
        cohort: the subjects; their maps are read in `gather`.
        channels: of their maps.
        folders: the atlas's folder in each subject's space, in the order of the cohort.

    Raises:
        CohortError: a template has fewer than 2 subjects, a folder doesn't record its atlas or its
            transforms, the atlases differ, or a transform can't be inverted.
    """

    def __init__(self, cohort: Cohort, channels: int, folders: Sequence[Path]) -> None:
        self.cohort = cohort
        self.channels = channels
        self.passages: list[_Passage] = []
        self.sums: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}
        first: tuple[str, dict[str, str]] | None = None
        for subject, folder in zip(cohort.subjects, folders, strict=True):
            passage, atlas, maps = _read(subject.name, folder)
            of_template = {f"{passage.template} {name}": value for name, value in maps.items()}
            if first is None:
                first = (atlas, {})
            known = first[1]
            if any(known.get(name, value) != value for name, value in of_template.items()):
                raise CohortError(
                    f"subject {subject.name}: {folder} contains another atlas ({atlas}) than that "
                    f"of subject {cohort.subjects[0].name} ({first[0]}); warp one atlas to all "
                    f"subjects (python -m bundle carry), {_ADVICE}"
                )
            known.update(of_template)
            self.passages.append(passage)
            self.counts[passage.template] = self.counts.get(passage.template, 0) + 1
        for subject, passage in zip(cohort.subjects, self.passages, strict=True):
            if self.counts[passage.template] < 2:
                what = "" if len(self.counts) == 1 else f" of template {passage.template}"
                raise CohortError(
                    f"leave-one-out needs at least 2 subjects{what}, got {subject.name} "
                    f"alone; {_ADVICE.removeprefix('or ')}"
                )
        self.grid = _grid_of(Path(first[0]), cohort) if first is not None else cohort.grid

    def gather(self) -> None:
        """Sum all densities in template space.

        Raises:
            CohortError: a map or a transform can't be read.
        """
        with progress_bar(len(self.cohort.subjects), "others") as bar:
            for subject, passage in zip(self.cohort.subjects, self.passages, strict=True):
                share = self._in_template(subject, passage)
                if passage.template in self.sums:
                    self.sums[passage.template] += share
                else:
                    self.sums[passage.template] = share
                bar.update()

    def average(self, index: int) -> np.ndarray:
        """The others' average density in a subject's space, ``(C, *shape)`` float64.

        Args:
            index: of the subject in the cohort; `gather` has been called.
        """
        passage, shape = self.passages[index], self.cohort.grid.shape
        rest = self.sums[passage.template] - self._in_template(self.cohort.subjects[index], passage)
        rest /= self.counts[passage.template] - 1
        # Where only this subject is present, rounding may leave tiny values.
        rest[rest < 1e-12 * float(rest.max(initial=0))] = 0
        resampled = resample(
            rest, _solid(self.grid), _opened(passage.to_template), _solid(self.cohort.grid)
        )
        return resampled.reshape(self.channels, *shape).astype(np.float64)

    def _in_template(self, subject: Subject, passage: _Passage) -> np.ndarray:
        """``(C, X, Y, Z)`` float64; a plane has Z = 1."""
        subject_grid = _solid(self.cohort.grid)
        density = subject_density(subject, self.channels, self.cohort.grid.shape)
        density = density.reshape(self.channels, *subject_grid.shape)
        if not passage.to_subject and self.grid.same_as(self.cohort.grid) is None:
            return density
        warped = resample(density, subject_grid, _opened(passage.to_subject), _solid(self.grid))
        return warped.astype(np.float64)


def _read(name: str, folder: Path) -> tuple[_Passage, str, dict[str, str]]:
    """A subject's transforms, the atlas's folder and the hashes of its maps."""
    path = folder / "carried.json"
    if not os.path.lexists(path):
        raise CohortError(
            f"subject {name}: no such file {path}, which records the transforms; run "
            f"python -m bundle carry, {_ADVICE}"
        )
    try:
        about = read_json(inside(folder, path.name))
        atlas, maps = str(about["atlas"]["folder"]), dict(about["atlas"]["maps"])
        template = int(about["atlas"]["template"])
        recorded = [(TransformFile.of_dict(one), str(one["sha256"])) for one in about["transforms"]]
        if any("\0" in text for text in (atlas, *(str(file.path) for file, _ in recorded))):
            raise ValueError("a path contains a zero byte")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CohortError(f"{path}: doesn't record how the atlas was warped") from error
    for file, expected in recorded:
        if not file.path.is_file() or sha256_of(file.path) != expected:
            raise CohortError(
                f"subject {name}: {file.path}, which the atlas was warped by, is missing or has "
                "changed; run python -m bundle carry again"
            )
    to_subject = tuple(_reverse(name, file) for file, _ in reversed(recorded))
    return _Passage(template, tuple(file for file, _ in recorded), to_subject), atlas, maps


def _reverse(name: str, file: TransformFile) -> TransformFile:
    """The transform the other way."""
    if not file.is_field:
        return replace(file, inverted=not file.inverted)
    to_template, to_subject = field_names(name)
    other = {to_template: to_subject, to_subject: to_template}.get(file.path.name)
    if other is None or not file.path.with_name(other).is_file():
        raise CohortError(
            f"subject {name}: leave-one-out needs both directions of {file.path}, and its inverse "
            f"isn't known; publish the bundle's fields (learned_atlas#save_fields true), "
            f"{_ADVICE}"
        )
    return TransformFile(file.path.with_name(other))


def _grid_of(atlas: Path, cohort: Cohort) -> Grid:
    """The atlas's grid, with the cohort's number of axes for a plane."""
    path = next(iter(sorted(atlas.glob("atlas_mean.nii.gz"))), None) or next(
        iter(sorted(atlas.glob("template-*/atlas_mean.nii.gz"))), None
    )
    if path is None:
        raise CohortError(f"{atlas}: no such atlas; run python -m bundle carry again, {_ADVICE}")
    grid = read_grid(path)
    if len(cohort.grid.shape) == 2 and grid.shape[2] == 1:
        return Grid(grid.shape[:2], grid.affine, grid.header)
    return grid


def _solid(grid: Grid) -> Grid:
    """The grid with three axes; a plane gets one voxel along the third."""
    return Grid((*grid.shape, 1)[:3], grid.affine, grid.header)


def _opened(files: Sequence[TransformFile]) -> list[Transform]:
    return [read_transform(file) for file in files]
