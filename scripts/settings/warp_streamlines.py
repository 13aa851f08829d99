"""Typed settings of the warp of streamlines; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from scripts.settings.checks import check_folder_names, check_given
from scripts.settings.section import Section, setting
from scripts.settings.transforms import TRANSFORMS, Transforms
from scripts.settings.values import FilePath, Names

__all__ = ["WarpStreamlinesConfig", "load_warp_streamlines"]


class WarpStreamlinesConfig(Section):
    """The whole ``warp_streamlines:`` block."""

    key_path: ClassVar[str] = "warp_streamlines"

    subjects: Names = setting(
        [], "Subjects whose tractograms to warp.", "a non-empty list of distinct names"
    )
    tractogram: FilePath = setting("", "Path of the tractogram, with `{subject}`.", "a path")
    direction: Literal["to_template", "to_subject"] = setting(
        "to_template",
        "Target of the streamlines if `transforms` is empty and the bundle's fields are used.",
        "to_template or to_subject",
    )
    transforms: Transforms = setting(
        [],
        "Transforms to use instead of the bundle's fields, in the order in which a point passes "
        "through them, as antsApplyTransformsToPoints takes them. A file that warps images from A "
        "to B moves points from B to A: to move points from A to B, give the file of the other "
        "direction, or `[path, 1]` for the inverse, of a field as well. `{subject}` in a path.",
        f"{TRANSFORMS}; may be empty",
    )
    reference: FilePath | None = setting(
        None,
        "Image of the target space, with `{subject}`; its grid goes into the header of TRK and TRX "
        "files. Null: the atlas for to_template with the bundle's fields; otherwise required for "
        "these formats.",
        "null or a path",
    )
    format: Literal["same", "trk", "tck", "trx", "vtk"] = setting(
        "same", "Format of the result.", "same, trk, tck, trx or vtk"
    )
    vtk_space: Literal["auto", "ras", "lps"] = setting(
        "auto",
        "World coordinates of the points in VTK files: auto takes the space in the title, else "
        "LPS for .fib and RAS for .vtk; dipy writes .vtk in lps.",
        "auto, ras or lps",
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        check_folder_names(names)
        return names

    _paths = field_validator("tractogram", "reference")(check_given)


load_warp_streamlines = WarpStreamlinesConfig.of_config
