"""Typed settings of the ``make_pairs:`` block; torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from scripts.settings.checks import check_placeholders
from scripts.settings.image_pairs import Paths, check_distinct
from scripts.settings.pair_selection import INDEXES_RULE, Indexes, check_indexes, to_optional_int
from scripts.settings.section import Section, section, setting, to_section
from scripts.settings.values import FilePath, Integer, Integers, Number, Text

__all__ = [
    "MakePairsAffineConfig",
    "MakePairsConfig",
    "MakePairsElasticConfig",
    "load_make_pairs",
]


def _check_shape(shape: list[int] | None) -> list[int] | None:
    if shape is not None:
        if len(shape) not in (2, 3):
            raise ValueError(f"has {len(shape)} entries")
        if min(shape) < 16:
            raise ValueError(f"has an entry below 16: {min(shape)}")
    return shape


class MakePairsAffineConfig(Section):
    """Random affine part of the displacements, about the image's centre."""

    key_path: ClassVar[str] = "make_pairs.affine"

    rotation: Number = setting(10.0, "Largest rotation, degrees.", ge=0, le=90)
    scale: Number = setting(0.1, "Largest deviation of a scale from 1.", ge=0, lt=1)
    shear: Number = setting(0.05, "Largest shear.", ge=0, lt=1)
    translation: Number = setting(20.0, "Largest translation along each axis, pixels.", ge=0)
    probability: Number = setting(1.0, "Share of the pairs that have an affine part.", ge=0, le=1)


class MakePairsElasticConfig(Section):
    """Random elastic part: the exponential of a smooth velocity."""

    key_path: ClassVar[str] = "make_pairs.elastic"

    kind: Literal["noise", "control_points", "edge_stretching", "none"] = setting(
        "noise",
        "Where the velocity comes from: smoothed noise; bumps at random points; bumps at points on "
        "the image's edges; none: affine pairs.",
        "noise, control_points, edge_stretching or none",
    )
    rms: Number = setting(
        4.0, "Largest root mean square of the displacement, pixels; a pair's is uniform below it.",
        gt=0,
    )  # fmt: skip
    width: Number = setting(
        32.0, "Standard deviation of the smoothing, or of the bumps, pixels.", gt=0
    )
    points: Integer = setting(12, "Bumps of control_points and edge_stretching.", ge=1, le=10000)
    anchor: Number = setting(
        0.15,
        "The velocity fades to 0 over this share of the image at each border; 0: it doesn't.",
        "a number >= 0 and <= 0.5",
        ge=0,
        le=0.5,
    )


class MakePairsConfig(Section):
    """The whole ``make_pairs:`` block."""

    key_path: ClassVar[str] = "make_pairs"
    less_memory: ClassVar[str] = "use a smaller make_pairs#shape or fewer make_pairs#num_workers"

    reference: Paths = setting(
        [],
        "Reference images: NIfTI files (2-D or 3-D), a folder of images, an OME-Zarr group, an "
        ".npz or .npy file, or an earlier store (.h5), whose pairs are deformed further. `*` "
        "stands for any part of a file's name.",
        "a path or a list of distinct paths",
    )
    atlas_dir: FilePath | None = setting(
        None,
        "A published atlas in place of reference images: its subjects and their fields become the "
        "pairs, unchanged.",
        "null or a path",
    )
    array: Text | None = setting(
        None, "Name of the array inside of an .npz file or an OME-Zarr group.", "null or a name"
    )
    dims: Annotated[int | None, BeforeValidator(to_optional_int)] = setting(
        None,
        "2: each section of a volume is an image; 3: a volume is one image. Null: 3 for NIfTI "
        "volumes, 2 for everything else.",
        "null, 2 or 3",
    )
    axis: Integer = setting(
        0, "Axis along which the sections of a volume follow each other.", ge=0, le=2
    )
    section_step: Integer = setting(
        25, "Distance between the sections of a volume, micrometres; gives `p`.", ge=1
    )
    indexes: Indexes = setting(
        None, "Which of the reference images are used, counted from 0. Null: all.", INDEXES_RULE
    )
    specimen: Text | None = setting(
        None,
        "Names of the reference files without their ending, such as `{subject}_{run}`: files of "
        "one subject are one specimen, which folds of `train-fields` never divide. Null: each file "
        "is a specimen.",
        "null or a name with {subject}, optionally {run} and *",
    )
    shape: Annotated[Integers | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "Size that the images are resampled to. Null: their size.",
        "null or a list of 2 or 3 integers, each >= 16",
    )
    count: Integer = setting(1000, "Pairs to make.", ge=1, le=10_000_000)
    start_registered: Number = setting(
        0.5,
        "Of an earlier store: how often a pair starts from the registered image instead of the "
        "moving one.",
        ge=0,
        le=1,
    )
    affine: Annotated[MakePairsAffineConfig, BeforeValidator(to_section)] = section(
        MakePairsAffineConfig, "Random affine part."
    )
    elastic: Annotated[MakePairsElasticConfig, BeforeValidator(to_section)] = section(
        MakePairsElasticConfig, "Random elastic part."
    )
    max_folds: Integer = setting(0, "Most voxels of a field that may fold.", ge=0)
    tolerance: Number = setting(0.05, "Largest error of the inverse in the interior, pixels.", gt=0)
    trials: Integer = setting(
        5, "Displacements that are tried before a pair is left unchanged.", ge=1, le=1000
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) replaces x.",
        gt=0,
    )
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    num_workers: Integer = setting(0, "Processes beside the first; the store is the same.", ge=0)

    _shape = field_validator("shape")(_check_shape)
    _indexes = field_validator("indexes")(check_indexes)

    @field_validator("specimen")
    @classmethod
    def _check_specimen(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            check_placeholders(pattern, ("subject", "run"))
            if "{subject}" not in pattern:
                raise ValueError("has no {subject}")
            if "/" in pattern:
                raise ValueError("is a path")
        return pattern

    @field_validator("dims")
    @classmethod
    def _check_dims(cls, dims: int | None) -> int | None:
        if dims not in (None, 2, 3):
            raise ValueError("is not a number of dimensions")
        return dims

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, reference: list[str]) -> list[str]:
        return check_distinct(reference)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.reference) == bool(self.atlas_dir):
            raise ValueError("needs either reference or atlas_dir")
        return self

    @model_validator(mode="after")
    def _check_difference(self) -> Self:
        still = self.affine.probability == 0 or not (
            self.affine.rotation
            or self.affine.scale
            or self.affine.shear
            or self.affine.translation
        )
        if self.elastic.kind == "none" and still and not self.atlas_dir:
            raise ValueError("elastic.kind is none and affine is all 0: nothing would move")
        return self


load_make_pairs = MakePairsConfig.of_config
