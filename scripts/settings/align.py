"""Typed settings of the alignment of a cohort; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator

from scripts.settings.checks import check_placeholders, check_relative
from scripts.settings.cohort import SubjectSearch
from scripts.settings.image_pairs import Paths, check_distinct
from scripts.settings.refine import PairSettings
from scripts.settings.section import setting
from scripts.settings.values import FilePath, Flag, Integer, Names, Number, Text

__all__ = ["AlignConfig", "load_align"]


class AlignConfig(PairSettings):
    """The whole ``align:`` block."""

    key_path: ClassVar[str] = "align"
    less_memory: ClassVar[str] = "use larger align#levels, or align#device cpu"

    image: Text = setting(
        "{subject}/t2.nii.gz",
        "Path inside the dataset folder of the image that the transforms are estimated from; "
        "`{subject}` stands for the subject's name, `{run}` for one of its images if it has "
        "several, other parts may contain `*`, `?` and `**`.",
        "a relative path with {subject}, optionally {run}",
    )
    images: Paths = setting(
        [],
        "Paths of further images to apply the same transforms to (density maps, for example), "
        "interpolated linearly.",
        "a list of relative paths with {subject}, optionally {run}",
    )
    labels: Paths = setting(
        [],
        "Paths of label images to apply the same transforms to, by the nearest voxel.",
        "a list of relative paths with {subject}, optionally {run}",
    )
    subjects: Names | None = setting(
        None, "Subjects to align. Null: all that are found.", "null or a list of distinct names"
    )
    exclude: Names = setting([], "Names of subjects to leave out.", "a list of distinct names")
    min_subjects: Integer = setting(2, "Fewest usable subjects to go on with.", ge=1)
    target: FilePath | None = setting(
        None,
        "Image to align all subjects to, such as the template of an earlier alignment for new "
        "subjects. Null: the cohort's mean, computed in rounds.",
        "null or a path",
    )
    rounds: Integer = setting(
        3,
        "Rounds of aligning to the mean image and computing it again. Before them all subjects are "
        "registered coarsely to one of them.",
        ge=1,
    )
    spacing: Number | None = setting(
        None,
        "Voxel size of the common grid, mm. Null: the cohort's median.",
        gt=0,
    )
    margin: Integer = setting(5, "Voxels around the support of the aligned images.", ge=0)
    resume: Flag = setting(
        True,
        "Continue an interrupted run of the same images and settings, if there is one.",
    )
    output_subdir: Text = setting(
        "aligned",
        "Folder of the aligned cohort, inside the output folder.",
        "one path component without separators or leading dot",
    )

    @field_validator("image")
    @classmethod
    def _check_image(cls, pattern: str) -> str:
        return _check_pattern(pattern)

    @field_validator("images", "labels")
    @classmethod
    def _check_images(cls, patterns: list[str]) -> list[str]:
        return [_check_pattern(pattern) for pattern in check_distinct(patterns)]

    @field_validator("subjects", "exclude")
    @classmethod
    def _check_names(cls, names: list[str] | None) -> list[str] | None:
        if names is not None:
            check_distinct(names)
        return names

    def subject_search(self, pattern: str, runs_apart: bool | None = None) -> SubjectSearch:
        """Where to look for the images of one of its patterns.

        Args:
            pattern: one of the settings.
            runs_apart: see `SubjectSearch`.
        """
        kinds = {"images": self.images, "labels": self.labels}
        kind = next((name for name, those in kinds.items() if pattern in those), "image")
        return SubjectSearch(
            section=self.key_path,
            pattern=pattern,
            subjects=self.subjects,
            exclude=tuple(self.exclude),
            output_subdir=self.output_subdir,
            runs_apart=runs_apart,
            keys={"pattern": self.key(kind)},
        )

    @field_validator("output_subdir")
    @classmethod
    def _check_subdir(cls, name: str) -> str:
        if not name.strip() or "/" in name or "\\" in name or name.startswith("."):
            raise ValueError("is not such a component")
        return name


def _check_pattern(pattern: str) -> str:
    check_relative(pattern)
    check_placeholders(pattern, ("subject", "run"))
    if "{subject}" not in pattern:
        raise ValueError(f"has no {{subject}}: {pattern!r}")
    return pattern


load_align = AlignConfig.of_config
