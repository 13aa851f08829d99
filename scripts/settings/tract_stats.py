"""Typed settings of the measures per tract; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.settings.checks import check_folder_names, check_names, check_not_blank
from scripts.settings.section import Section, setting
from scripts.settings.values import FilePath, Names, Number, Typed, to_float, to_list, to_path

__all__ = ["TractStatsConfig", "load_tract_stats"]

RESERVED_IMAGES = ("atlas", "weights", "log_jacobian", "lesion", "density")
"""Names that the table and its description reserve."""


def _to_images(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError("is not a mapping of names to paths")
    for name, path in value.items():
        if not isinstance(name, str) or not name.strip() or not isinstance(path, str):
            raise ValueError(f"has an entry that is not a name with a path: {name!r}: {path!r}")
        if not path.strip():
            raise ValueError(f"has no path for {name!r}")
    return {name: to_path(path) for name, path in value.items()}


def _to_percentiles(value: object) -> object:
    return [to_float(one) for one in to_list(value)]


class TractStatsConfig(Section):
    """The whole ``tract_stats:`` block."""

    key_path: ClassVar[str] = "tract_stats"

    subjects: Names | None = setting(
        None,
        "Subjects to measure. Null: all that have an atlas in their space below `carried_dir`.",
        "null or a non-empty list of distinct names",
    )
    tracts: Names | None = setting(
        None,
        "Names of the atlas's channels, in their order. Null: numbers from 1.",
        "null or a list of distinct names",
    )
    images: Annotated[dict[str, str], BeforeValidator(_to_images), Typed("paths_by_name")] = (
        setting(
            {},
            "Scalar images by name, such as `FA: data/{subject}/fa.nii.gz`, on the grid of the "
            "subject's atlas.",
            "a mapping of names to paths with {subject}",
        )
    )
    lesions: FilePath | None = setting(
        None,
        "Path of a lesion mask with `{subject}`, whole numbers that are not 0 in the lesion: the "
        "share of each tract that it covers. A subject without the file has no lesion load in the "
        "table; a warning names it.",
        "null or a path",
    )
    density: FilePath | None = setting(
        None,
        "Path of the subject's density map with `{subject}`, one volume for all tracts or one per "
        "tract: the share of the tract in which the subject has streamlines.",
        "null or a path",
    )
    log_jacobian: FilePath | None = setting(
        None,
        "Path, with `{subject}`, of the displacement field on the subject's grid that maps its "
        "points to the template (`fields/{subject}_from-template_to-subject_..."
        "xfm.nii.gz` in the atlas's folder): mean local growth of the subject relative to the "
        "template, the natural logarithm of the volume ratio.",
        "null or a path",
    )
    weights: Literal["mean", "prob_threshold", "none"] = setting(
        "mean",
        "Map of the atlas that weights the voxels of a tract; none counts each voxel once.",
        "mean, prob_threshold or none",
    )
    threshold: Number = setting(
        0.05,
        "Fraction of the tract's largest value, in the subject's space, above which a voxel "
        "belongs to the tract.",
        ge=0,
        lt=1,
    )
    percentiles: Annotated[list[float], BeforeValidator(_to_percentiles)] = setting(
        [5.0, 95.0], "Percentiles of each image besides its median.", "a list of numbers 0 to 100"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str] | None) -> list[str] | None:
        if names is not None:
            check_folder_names(names)
        return names

    @field_validator("tracts")
    @classmethod
    def _check_tracts(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError("is empty or repeats a name")
        check_names(names or [])
        return names

    @field_validator("images")
    @classmethod
    def _check_images(cls, images: dict[str, str]) -> dict[str, str]:
        for name in images:
            if name in RESERVED_IMAGES:
                raise ValueError(f"contains a name that the table reserves: {name!r}")
        return images

    _paths = field_validator("lesions", "density", "log_jacobian")(check_not_blank)

    @field_validator("percentiles")
    @classmethod
    def _check_percentiles(cls, values: list[float]) -> list[float]:
        if any(not 0 <= value <= 100 for value in values):
            raise ValueError("has an entry outside 0 to 100")
        return values


load_tract_stats = TractStatsConfig.of_config
