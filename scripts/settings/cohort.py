"""Settings of a cohort: where its subjects are, and what to divide their maps by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    field_validator,
)

from scripts.settings.checks import check_names, check_not_blank, check_placeholders, check_relative
from scripts.settings.section import Section, setting
from scripts.settings.values import (
    FilePath,
    Flag,
    Integer,
    Names,
    Number,
    Text,
    Typed,
    Workers,
    to_names,
)

__all__ = [
    "CohortRequest",
    "LearnedAtlasCohortConfig",
    "SubjectSearch",
    "check_exclude",
    "check_pattern",
    "check_subject_image",
    "check_subjects",
    "check_tracts",
]


OUTPUT_FOLDERS = frozenset(
    {
        "aligned",
        "atlas",
        "atlas_in_patient_space",
        "barycentre",
        "code",
        "cross_validation",
        "derivatives",
        "estimated",
        "evaluation",
        "fields",
        "labels",
        "learned_atlas",
        "refined",
        "registered",
        "registered_group",
        "registered_elastic",
        "registered_stack",
        "registration",
        "snapshots",
        "sourcedata",
        "sweep",
        "tensorboard",
        "tract_similarity",
        "warped",
        "tract_statistics",
        "warped_streamlines",
    }
)

RELATIVE = "relative, with / between its parts, none of them '..'"


def check_pattern(pattern: str | None) -> str | None:
    """Check a path inside the dataset folder with known placeholders, including {subject}."""
    if pattern is not None:
        check_relative(pattern)
        check_placeholders(pattern, ("subject", "tract", "run"))
        if "{subject}" not in pattern:
            raise ValueError("has no {subject}")
    return pattern


def check_subjects(subjects: list[str] | str | None) -> list[str] | str | None:
    """Check names, or the file of a list."""
    if isinstance(subjects, list):
        if not subjects:
            raise ValueError("names no subject")
        check_names(subjects)
    elif subjects is not None and not subjects.lower().endswith((".txt", ".csv", ".json")):
        raise ValueError("is neither a list nor a .txt, .csv or .json file")
    return subjects


def check_exclude(names: list[str]) -> list[str]:
    """Check distinct, non-empty names."""
    check_names(names)
    return names


def check_subject_image(path: str | None) -> str | None:
    """Check the path of one more image per subject: {subject} and no other placeholder."""
    if path is not None:
        check_placeholders(path, ("subject",))
        if "{subject}" not in path:
            raise ValueError("has no {subject}")
    return path


def check_tracts(names: list[str]) -> list[str]:
    """Check distinct names that can be file names."""
    check_names(names)
    for name in names:
        if re.search(r"[/\\\x00]", name) or name in (".", ".."):
            raise ValueError(f"has a tract that can't be a file name: {name!r}")
    return names


class LearnedAtlasCohortConfig(Section):
    """Where subjects are, and how to read their density maps."""

    key_path: ClassVar[str] = "learned_atlas.cohort"

    layout: Literal[
        "probtrackx2", "mrtrix3", "xtract", "tractseg", "bids", "flat", "streamlines"
    ] = setting(
        "probtrackx2",
        "Known layout of the dataset folder; with streamlines the subjects are tractograms (see "
        "`reference`).",
        "one of probtrackx2, mrtrix3, xtract, tractseg, bids, flat, streamlines",
    )
    pattern: Text | None = setting(
        None,
        "Path of a map inside the dataset folder, for any other layout; replaces the layout. "
        "`{subject}` stands for the subject's name, `{tract}` for a tract's name, `{run}` for one "
        "of several images of a subject, named `{subject}_{run}` (a left and a right one are "
        "summed); other parts may contain `*`, `?` and `**`.",
        f"null or a path with {{subject}}, optionally {{tract}} and {{run}}; {RELATIVE}",
    )
    subjects: Annotated[
        list[str] | str | None, BeforeValidator(to_names), Typed("names_or_list")
    ] = setting(
        None,
        "Subjects to use: their names, or a text file with one name per line, or a list of the "
        "maps: a .csv of `subject,path[,tract]`, or MONAI's .json data list, whose entries (under "
        "`training`, if it has parts) have the path as `image`, and `subject` and `tract` if the "
        "path doesn't contain them. All are relative to the dataset folder. Null: all subjects.",
        "null, a non-empty list of distinct names, or the path of a .txt, .csv or .json file",
    )
    participants: FilePath = setting(
        "participants.tsv",
        "Table of the subjects' covariates (BIDS: tab-separated, with a participant_id), relative "
        "to the dataset folder; used if model.covariates names any.",
        "the path of a .tsv file",
    )
    exclude: Names = setting(
        [], "Names of subjects to leave out.", "a list of distinct, non-empty names"
    )
    tracts: Names = setting(
        [],
        "Names of the tracts to learn jointly, one channel each. Empty: with model.channels 1 the "
        "whole map, or the sum of a subject's tracts if the layout has nothing else; with more "
        "channels the dataset's tracts, if there are exactly as many.",
        "a list of distinct tract names, as many as model.channels, or empty",
    )
    reference: FilePath | None = setting(
        None,
        "Image whose grid tractograms are counted on; needed where a layout or pattern leads to "
        "tractograms (.trk, .tck, .trx, .vtk, .fib). Relative to the dataset folder, or absolute.",
        "null or the path of a NIfTI file",
    )
    vtk_space: Literal["auto", "ras", "lps"] = setting(
        "auto",
        "World coordinates of the points in VTK tractograms: auto takes the space in the title, "
        "else LPS for .fib and RAS for .vtk; dipy writes .vtk in lps.",
        "auto, ras or lps",
    )
    density_dir: FilePath | None = setting(
        None,
        "Folder for the maps counted from tractograms, so that each is counted once. Null: a "
        "hidden folder `.density_maps` in the dataset folder.",
        "null or the path of a folder",
    )
    labels: FilePath | None = setting(
        None,
        "Path of each subject's label map, with `{subject}` for the subject's name: whole numbers "
        "on the grid of the subject's density map, 0 for background. The atlas fuses them in "
        "template space. Relative to the dataset folder (to the current folder for maps that are "
        "given one by one), or absolute. A subject without the file has no labels.",
        "null or a path with {subject} to a NIfTI file",
    )
    label_names: FilePath | None = setting(
        None,
        "Names of the labels: a .tsv or .csv with the columns `index` and `name` (BIDS), or a text "
        "file of lines `<number> <name>` (FreeSurfer's colour tables). Relative to the dataset "
        "folder, or absolute. Null: labels are called by their numbers.",
        "null or the path of a text file",
    )
    mask: FilePath | None = setting(
        None,
        "Path of each new subject's mask of voxels to ignore, such as a lesion, with `{subject}`: "
        "whole numbers, not 0 in these voxels. `register` and `evaluate` leave these voxels out, "
        "and the field there continues the field around them. Relative or absolute as `labels`. "
        "For a subject without the file, no voxel is ignored.",
        "null or a path with {subject} to a NIfTI file",
    )
    normalisation: Literal["waytotal", "streamline_density", "max", "none"] = setting(
        "waytotal",
        "What each map is divided by: the sum of its waytotal file (for a tractogram: the number "
        "of its streamlines), the sum of the map, its maximum, or nothing.",
        "one of waytotal, streamline_density, max, none",
    )
    nan: Literal["refuse", "zero"] = setting(
        "refuse",
        "How to treat a map with NaN, which some tools write outside the field of view: refuse "
        "leaves the subject out, zero reads NaN as 0.",
        "refuse or zero",
    )
    negative: Literal["refuse", "zero"] = setting(
        "refuse",
        "How to treat a map with negative density, as from resampling by splines: refuse leaves "
        "the subject out, zero reads values below 0 as 0.",
        "refuse or zero",
    )
    grid_tolerance: Number = setting(
        0.01,
        "Largest distance between the corners of two subjects' grids that count as the same grid, "
        "in voxels: headers are rounded. The order of the axes may differ.",
        gt=0,
        lt=0.5,
    )
    margin: Integer = setting(8, "Voxels kept around the cohort's support when cropping.", ge=0)
    cache: Literal["ram", "device", "disk", "none"] = setting(
        "ram", "Where prepared maps are kept between epochs.", "one of ram, device, disk, none"
    )
    num_workers: Workers = setting(0, "Processes that read maps while training.", ge=0)
    resample: Flag = setting(
        False,
        "Resample new subjects from another grid to the atlas's grid, to the density that their "
        "streamlines would give there. Training subjects are never resampled.",
    )

    _pattern = field_validator("pattern")(check_pattern)

    _subjects = field_validator("subjects")(check_subjects)

    @field_validator("participants")
    @classmethod
    def _check_participants(cls, path: str) -> str:
        if not path.lower().endswith(".tsv") or not path[:-4].strip():
            raise ValueError("is not a .tsv file")
        return path

    _paths = field_validator("reference", "density_dir", "label_names")(check_not_blank)

    _exclude = field_validator("exclude")(check_exclude)

    _tracts = field_validator("tracts")(check_tracts)

    _subject_images = field_validator("labels", "mask")(check_subject_image)


# ---------------------------------------------------------------------------------------------
# What jobs request from the cohort room
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubjectSearch:
    """Where a job looks for its subjects, and how its user writes these settings.

    Every job that reads a dataset folder creates one from its settings, so that a message names a
    setting that its user knows.

    Attributes:
        section: dotted path of the settings that say where subjects are.
        layout: known layout of the folder; None for a job that only takes patterns.
        pattern: path of a map, instead of the layout.
        subjects: names, or the path of a list; None takes every subject found.
        exclude: names of subjects to leave out.
        tracts: names of tracts, one channel each.
        channels: number of maps per subject; must be that of the tracts if these are named.
        inside_subject: path of the map inside a subject's folder; takes precedence over pattern and
            layout.
        output_subdir: folder that the job writes to; it is not a subject.
        runs_apart: whether each ``{run}`` of a pattern is an image; None: decided by the files.
        keys: dotted paths of settings that aren't in ``section`` under their name here.
    """

    section: str
    layout: str | None = None
    pattern: str | None = None
    subjects: list[str] | str | None = None
    exclude: tuple[str, ...] = ()
    tracts: tuple[str, ...] = ()
    channels: int = 1
    inside_subject: str | None = None
    output_subdir: str | None = None
    runs_apart: bool | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """A setting as errors name it: ``learned_atlas.cohort.pattern``."""
        return self.keys.get(name, f"{self.section}.{name}")

    def option(self, name: str) -> str:
        """A setting as the command line takes it: ``learned_atlas#cohort#pattern``."""
        return self.key(name).replace(".", "#")


@dataclass(frozen=True)
class CohortRequest:
    """The cohort of density maps that a job requests.

    Attributes:
        search: where its subjects are.
        cohort: how to read their maps.
        min_subjects: smallest number of usable subjects.
        covariates: columns of the participants' table to read.
        categorical_covariates: the covariates that are categories.
        keys: dotted paths of the settings that aren't in ``cohort``.
    """

    search: SubjectSearch
    cohort: LearnedAtlasCohortConfig
    min_subjects: int = 1
    covariates: tuple[str, ...] = ()
    categorical_covariates: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """A setting as errors name it."""
        return self.keys.get(name) or self.search.key(name)

    def option(self, name: str) -> str:
        """A setting as the command line takes it."""
        return self.key(name).replace(".", "#")

    def without_labels(self) -> CohortRequest:
        """The same request for a job that makes nothing of label maps."""
        return replace(self, cohort=self.cohort.model_copy(update={"labels": None}))
