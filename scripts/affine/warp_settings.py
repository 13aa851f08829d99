"""Settings of ``warp``; see `scripts.sections`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.consumers.settings import Transforms
from scripts.errors import report_errors_in_one_line
from scripts.sections import Section, Text, setting, to_names

__all__ = ["WarpConfig", "load_warp"]


class WarpConfig(Section):
    """The whole ``warp:`` block."""

    key_path: ClassVar[str] = "warp"

    subjects: Annotated[list[str], BeforeValidator(to_names)] = setting(
        [], "Whose images to warp.", "a non-empty list of distinct names"
    )
    image: Text = setting("", "Path of the image, with `{subject}`.", "a path")
    transforms: Transforms = setting(
        [],
        "Transforms in the order of antsApplyTransforms's -t, the first one the first that a point "
        "of the reference passes through; `{subject}` in a path, `[path, 1]` for an affine's "
        "inverse.",
        "a non-empty list of paths and [path, 1]",
    )
    reference: Text = setting(
        "", "Image whose grid the result lies on, with `{subject}`.", "a path"
    )
    interpolation: Literal["linear", "nearest"] = setting(
        "linear", "nearest for labels.", "linear or nearest"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("names nobody")
        if len(set(names)) < len(names):
            raise ValueError("has a name twice")
        for name in names:
            if re.search(r"[/\\\x00-\x1f]", name) or not name.strip() or name.startswith("."):
                raise ValueError(f"has a name that is no folder's: {name!r}")
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


def load_warp(block: Mapping[str, Any] | None) -> WarpConfig:
    """Validate the ``warp:`` block; user errors are one line from here on.

    Raises:
        ConfigurationError: with a line per violation.
    """
    report_errors_in_one_line()
    return WarpConfig.load(block)
