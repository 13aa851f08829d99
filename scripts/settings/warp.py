"""Typed settings of the warp of images; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.settings.applications import Transforms
from scripts.settings.section import Section, Text, check_folder_names, setting, to_names

__all__ = ["WarpConfig", "load_warp"]


class WarpConfig(Section):
    """The whole ``warp:`` block."""

    key_path: ClassVar[str] = "warp"

    subjects: Annotated[list[str], BeforeValidator(to_names)] = setting(
        [], "Subjects whose images are warped.", "a non-empty list of distinct names"
    )
    image: Text = setting("", "Path of the image, with `{subject}`.", "a path")
    transforms: Transforms = setting(
        [],
        "Transforms in the order of antsApplyTransforms's -t: a point of the reference passes "
        "through the first one first; `{subject}` in a path, `[path, 1]` for an affine's inverse.",
        "a non-empty list of paths and [path, 1]",
    )
    reference: Text = setting("", "Image whose grid the result gets, with `{subject}`.", "a path")
    interpolation: Literal["linear", "nearest"] = setting(
        "linear", "Interpolation; use nearest for labels.", "linear or nearest"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        check_folder_names(names)
        return names

    @field_validator("image", "reference")
    @classmethod
    def _check_path(cls, path: str) -> str:
        if not path.strip():
            raise ValueError("is missing")
        return path

    @field_validator("transforms")
    @classmethod
    def _check_transforms(cls, entries: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
        if not entries:
            raise ValueError("is empty")
        return entries


load_warp = WarpConfig.of_config
