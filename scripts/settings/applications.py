"""Typed settings of the jobs that use a published atlas; rules as in `scripts.settings.section`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from scripts.settings.cohort import OUTPUT_FOLDERS
from scripts.settings.section import (
    Flag,
    Integer,
    Number,
    Section,
    Size,
    Text,
    check_folder_names,
    setting,
    to_int,
    to_list,
    to_names,
)

__all__ = [
    "AtlasToPatientConfig",
    "BarycentreConfig",
    "TractSimilarityConfig",
    "load_atlas_to_patient",
    "load_barycentre",
    "load_tract_similarity",
]


def _to_transforms(value: object) -> object:
    """Convert entries to paths or (path, 0 or 1); antsApplyTransforms writes ``[path,1]``."""
    given = [value] if isinstance(value, str) else to_list(value)
    if len(given) == 2 and isinstance(given[0], str) and not isinstance(given[1], str | list):
        given = [given]  # one [path, 1] that was parsed as a list
    entries = []
    for entry in given:
        if isinstance(entry, str):
            match = re.fullmatch(r"\[\s*(.+?)\s*,\s*([01])\s*\]", entry)
            path, inverted = (match[1], int(match[2])) if match else (entry, 0)
        else:
            pair = to_list(entry)
            if len(pair) != 2 or not isinstance(pair[0], str):
                raise ValueError(f"has an entry that is not a transform: {entry!r}")
            path, inverted = pair[0], to_int(int(pair[1]) if pair[1] is True else pair[1])
        if not path.strip() or inverted not in (0, 1):
            raise ValueError(f"has an entry that is not a transform: {entry!r}")
        entries.append((path, bool(inverted)))
    return entries


Transforms = Annotated[list[tuple[str, bool]], BeforeValidator(_to_transforms)]
_LIST = "a path, or a list of paths and [path, 1] in the order of antsApplyTransforms's -t"


class AtlasToPatientConfig(Section):
    """The whole ``atlas_to_patient:`` block."""

    key_path: ClassVar[str] = "atlas_to_patient"

    patients: Annotated[list[str] | None, BeforeValidator(to_names)] = setting(
        None,
        "Patients to warp the maps to. Null: every subject of the atlas.",
        "null or a non-empty list of distinct names, each one safe path component",
    )
    space: Literal["template_native", "affine_native"] = setting(
        "template_native",
        "Space of the patients' images, or of the transforms from them. An atlas of affine_native "
        "maps is refused in template_native unless extra_transforms are given.",
        "template_native or affine_native",
    )
    transforms: Transforms = setting(
        [],
        "External transforms instead of the bundle's fields, as antsApplyTransforms takes them to "
        "warp the atlas to the patient. `{patient}` in a path stands for the patient's name, "
        "`[path, 1]` for an affine's inverse.",
        _LIST,
    )
    extra_transforms: Transforms = setting(
        [],
        "The extra warp that an affine_native atlas needs in template space: the transforms that "
        "warp affine-space images to template space. They come after `transforms`, or before the "
        "bundle's field.",
        _LIST,
    )
    reference: Text | None = setting(
        None,
        "Image whose grid the maps get, with `{patient}` as above. Null: the grid of the first "
        "transform if that is a field, the atlas's grid if there are no transforms.",
        "null or a path",
    )

    @field_validator("patients")
    @classmethod
    def _check_patients(cls, names: list[str] | None) -> list[str] | None:
        if names is None:
            return None
        check_folder_names(names)
        for name in names:
            if name in OUTPUT_FOLDERS:
                raise ValueError(f"has the name of an output folder: {name!r}")
        return names

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, reference: str | None) -> str | None:
        if reference is not None and not reference.strip():
            raise ValueError("is empty")
        return reference


load_atlas_to_patient = AtlasToPatientConfig.of_config


class TractSimilarityConfig(Section):
    """The whole ``tract_similarity:`` block."""

    key_path: ClassVar[str] = "tract_similarity"

    threshold: Number = setting(0.05, "Density above which a map counts as present.", ge=0)
    threshold_mode: Literal["fraction", "absolute"] = setting(
        "fraction",
        "Whether the threshold is a fraction of each map's maximum or a density.",
        "fraction or absolute",
    )
    bins: Size = setting(64, "Bins of the histograms that distributions are compared by.", ge=2)
    leave_one_out: Flag = setting(
        True,
        "Also compare each subject with the average of the others, warped through the template "
        "into its space.",
    )

    @field_validator("threshold_mode")
    @classmethod
    def _check_mode(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "fraction" and info.data.get("threshold", 0) >= 1:
            raise ValueError(f"needs a threshold below 1, got {info.data['threshold']:g}")
        return mode


load_tract_similarity = TractSimilarityConfig.of_config


class BarycentreConfig(Section):
    """The whole ``barycentre:`` block."""

    key_path: ClassVar[str] = "barycentre"

    blur: Number | None = setting(
        None,
        "Scale below which mass isn't transported, mm (standard deviation). Null: the longest side "
        "of a voxel.",
        gt=0,
    )
    iterations: Integer = setting(30, "Iterations at this blur, after larger ones.", ge=1)
    scaling: Number = setting(
        0.8,
        "Factor by which the blur shrinks, starting at half the grid's extent.",
        gt=0,
        lt=1,
    )


load_barycentre = BarycentreConfig.of_config
