"""Typed settings of the warp of streamlines; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.settings.applications import Transforms
from scripts.settings.section import Section, Text, check_folder_names, setting, to_names

__all__ = ["WarpStreamlinesConfig", "load_warp_streamlines"]


class WarpStreamlinesConfig(Section):
    """The whole ``warp_streamlines:`` block."""

    key_path: ClassVar[str] = "warp_streamlines"

    subjects: Annotated[list[str], BeforeValidator(to_names)] = setting(
        [], "Subjects whose tractograms to warp.", "a non-empty list of distinct names"
    )
    tractogram: Text = setting("", "Path of the tractogram, with `{subject}`.", "a path")
    direction: Literal["to_template", "to_subject"] = setting(
        "to_template",
        "Target of the streamlines if `transforms` is empty and the bundle's fields are used.",
        "to_template or to_subject",
    )
    transforms: Transforms = setting(
        [],
        "External transforms instead of the bundle's fields, in the order in which a point passes "
        "through them, as antsApplyTransformsToPoints takes them. A file that warps images from A "
        "to B maps points from B to A: to map points from A to B, give the file of the opposite "
        "direction, or `[path, 1]` for the inverse, also of a field. `{subject}` in a path.",
        "a list of paths and [path, 1]",
    )
    reference: Text | None = setting(
        None,
        "Image of the target space, with `{subject}`; its grid goes into the header of TRK and TRX "
        "files. Null: the atlas for to_template with the bundle's fields; otherwise required for "
        "these formats.",
        "null or a path",
    )
    format: Literal["same", "trk", "tck", "trx", "vtk"] = setting(
        "same", "Format of the result.", "same, trk, tck, trx or vtk"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        check_folder_names(names)
        return names

    @field_validator("tractogram", "reference")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None and not path.strip():
            raise ValueError("is missing")
        return path


load_warp_streamlines = WarpStreamlinesConfig.of_config
