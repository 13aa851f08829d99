"""Typed settings of the jobs that use a published atlas; rules as in `scripts.settings.section`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from scripts.settings.checks import check_folder_names, check_not_blank
from scripts.settings.cohort import OUTPUT_FOLDERS
from scripts.settings.section import Section, setting
from scripts.settings.transforms import TRANSFORMS, Transforms
from scripts.settings.values import FilePath, Flag, Integer, Names, Number, Size

__all__ = [
    "AtlasToPatientConfig",
    "BarycentreConfig",
    "TractSimilarityConfig",
    "load_atlas_to_patient",
    "load_barycentre",
    "load_tract_similarity",
]


class AtlasToPatientConfig(Section):
    """The whole ``atlas_to_patient:`` block."""

    key_path: ClassVar[str] = "atlas_to_patient"

    patients: Names | None = setting(
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
        "Transforms from elsewhere, in place of the bundle's own fields: as antsApplyTransforms "
        "would take them to bring the atlas to the patient. `{patient}` in a path stands for the "
        "patient's name, `[path, 1]` for an affine's inverse.",
        f"{TRANSFORMS}; may be empty",
    )
    extra_transforms: Transforms = setting(
        [],
        "The extra warp that an affine_native atlas needs in template space: the transforms that "
        "bring affine-space images to template space. They follow `transforms`, or precede the "
        "bundle's own field.",
        f"{TRANSFORMS}; may be empty",
    )
    reference: FilePath | None = setting(
        None,
        "Image whose grid the maps get, with `{patient}` as above. Null: the grid of the first "
        "transform if that is a field, the atlas's grid if there are no transforms.",
        "null or a path",
    )

    label_probabilities: Flag = setting(
        False,
        "Of an annotated atlas, also write the probability of each label in the patient's space; "
        "the most probable labels are always written.",
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

    _reference = field_validator("reference")(check_not_blank)


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
