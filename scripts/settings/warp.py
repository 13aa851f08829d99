"""Typed settings of the warp of images; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from scripts.settings.checks import check_folder_names, check_given
from scripts.settings.section import Section, setting
from scripts.settings.transforms import TRANSFORMS, TransformEntry, Transforms
from scripts.settings.values import FilePath, Names

__all__ = ["WarpConfig", "load_warp"]


class WarpConfig(Section):
    """The whole ``warp:`` block."""

    key_path: ClassVar[str] = "warp"

    subjects: Names = setting(
        [], "Subjects whose images to warp.", "a non-empty list of distinct names"
    )
    image: FilePath = setting("", "Path of the image, with `{subject}`.", "a path")
    transforms: Transforms = setting(
        [],
        "Transforms in the order of antsApplyTransforms's -t, the first one the first that a point "
        "of the reference passes through; `{subject}` in a path, `[path, 1]` for an affine's "
        "inverse.",
        f"a non-empty list, {TRANSFORMS.removeprefix('a list, ')}",
    )
    reference: FilePath = setting(
        "", "Image whose grid the result lies on, with `{subject}`.", "a path"
    )
    interpolation: Literal["linear", "nearest"] = setting(
        "linear", "Interpolation; use nearest for labels.", "linear or nearest"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        check_folder_names(names)
        return names

    _paths = field_validator("image", "reference")(check_given)

    @field_validator("transforms")
    @classmethod
    def _check_transforms(cls, entries: list[TransformEntry]) -> list[TransformEntry]:
        if not entries:
            raise ValueError("is empty")
        return entries


load_warp = WarpConfig.of_config
