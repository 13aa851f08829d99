"""Typed settings of the refinement of pairs; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from scripts.settings.checks import check_not_blank
from scripts.settings.cohort import check_subject_image
from scripts.settings.image_pairs import ImagePairs
from scripts.settings.section import Section, setting
from scripts.settings.transforms import ONE_TRANSFORM, Start
from scripts.settings.values import FilePath, Flag, Integer, Number, Size, Sizes, Text, Texts

__all__ = ["PairSettings", "RefineConfig", "load_refine"]

NETWORK = "network"
"""The shipped network's name among initialisations, and as the start of the elastic part."""
STARTS = ("identity", "centre", "axes", "search", NETWORK)


class PairSettings(Section):
    """How two images are compared and registered: shared by ``refine`` and ``align``."""

    family: Literal["rigid", "rigid_isotropic", "rigid_anisotropic", "affine"] = setting(
        "affine",
        "Transform model.",
        "one of rigid, rigid_isotropic, rigid_anisotropic, affine",
    )
    starts: Texts = setting(
        ["identity", "centre", "axes"],
        "Initialisations, each tried at the coarsest level: identity: unregistered; centre: "
        "aligned centres of mass; axes: aligned principal axes; search: many rotations; network: "
        "the estimate of the pretrained affine network (in 2-D: the best rotation).",
        "a list of different ones of identity, centre, axes, search, network",
    )
    levels: Sizes = setting(
        [4, 2],
        "Reductions of the images, from coarse to fine, in units of the fixed image's smallest "
        "voxel side.",
        "a non-empty list of falling integers >= 1",
    )
    iterations: Integer = setting(80, "Largest number of gradient steps per level.", ge=1)
    window: Size = setting(
        8,
        "Number of steps in which the loss must improve by `tolerance`; otherwise the steps "
        "shrink, and finally the level ends.",
        ge=1,
    )
    tolerance: Number = setting(1e-4, "Smallest improvement that counts as progress.", gt=0)
    similarity: Literal["correlation", "local_correlation"] = setting(
        "local_correlation",
        "Similarity measure: the correlation of the whole images, or of local windows.",
        "correlation or local_correlation",
    )
    correlation_window: Size = setting(
        5, "Side of the local correlation's window, voxels of the level.", "an odd integer >= 3",
        ge=3,
    )  # fmt: skip
    background: Literal["zero", "unknown"] = setting(
        "zero",
        "What is outside an image: background with value 0 (brains without skull, densities), or "
        "unknown (crops), so that only the overlap counts.",
        "zero or unknown",
    )
    log_offset: Number | None = setting(
        None,
        "Compare log1p(x / this) instead of x, for densities. Null: x itself.",
        gt=0,
    )
    device: Text = setting(
        "cpu",
        "Device for the computation.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )

    @field_validator("starts")
    @classmethod
    def _check_starts(cls, starts: list[str]) -> list[str]:
        if len(set(starts)) < len(starts):
            raise ValueError("contains an initialisation twice")
        for start in starts:
            if start not in STARTS:
                raise ValueError(f"names {start!r}, which is not an initialisation")
        return starts

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: list[int]) -> list[int]:
        if not levels:
            raise ValueError("is empty")
        if min(levels) < 1:
            raise ValueError(f"has an entry below 1: {min(levels)}")
        if any(b >= a for a, b in itertools.pairwise(levels)):
            raise ValueError("doesn't decrease from coarse to fine")
        return levels

    @field_validator("correlation_window")
    @classmethod
    def _check_window(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("is even")
        return window


class RefineConfig(PairSettings, ImagePairs):
    """The whole ``refine:`` block."""

    key_path: ClassVar[str] = "refine"
    less_memory: ClassVar[str] = "use larger refine#levels, or refine#device cpu"

    mode: Literal["affine", "elastic", "joint"] = setting(
        "affine",
        "affine: a matrix; elastic: a velocity after the matrix of `affine`, which stays fixed; "
        "joint: first a matrix, then velocity and matrix together.",
        "affine, elastic or joint",
    )
    start: Start = setting(
        None,
        "Affine to start from, such as a network's estimate; `{name}` in a path stands for the "
        "moving image's file name without its ending. For a matrix of flirt, the fixed and the "
        "moving image are those of the pair unless others are named.",
        f"null, or {ONE_TRANSFORM}",
    )
    fixed_mask: FilePath | None = setting(
        None,
        "Mask of the fixed image's voxels to ignore, such as a lesion: not 0 in these voxels, on "
        "the image's grid. The field there continues the field around them.",
        "null or the path of a NIfTI file",
    )
    moving_mask: FilePath | None = setting(
        None,
        "The same for each moving image; `{subject}` in the path stands for the moving image's "
        "file name without its ending. For an image without the file, no voxel is ignored.",
        "null or a path with {subject} to a NIfTI file",
    )
    elastic_start: FilePath | None = setting(
        None,
        "Initialisation of the velocity, applied to points before the affine: the file of a field "
        "from fixed to moving, as ITK, ANTs, refine and register-elastic write it; network: the "
        "pretrained registration network; or the file of a network of train-registration or "
        "train-elastic (.pt). `{name}` as in start.",
        "null, network, or a path",
    )
    elastic_start_kind: Literal["displacement", "velocity"] = setting(
        "displacement",
        "Meaning of the vectors in elastic_start's file: a displacement, or a stationary velocity "
        "whose flow is the displacement.",
        "displacement or velocity",
    )
    contrast: Literal["same", "other", "auto"] = setting(
        "same",
        "Contrast of the images, for the elastic part: same; other: the moving image's intensities "
        "are matched to the fixed one's first; auto: other if that raises their correlation by "
        "more than 0.15.",
        "same, other or auto",
    )
    smoothness_weight: Number = setting(0.5, "Weight of the velocity's squared gradient.", ge=0)
    int_steps: Integer = setting(7, "Scaling-and-squaring steps of the velocity.", ge=1, le=10)
    verify_jacobian: Flag = setting(True, "End without publishing if a field folds (det J <= 0).")

    _check_moving_mask = field_validator("moving_mask")(check_subject_image)

    _check_fixed_mask = field_validator("fixed_mask")(check_not_blank)

    @property
    def starts_from_network(self) -> bool:
        """Whether the elastic part starts from a network, not from the file of a field."""
        named = self.elastic_start
        return named is not None and (named == NETWORK or named.endswith(".pt"))

    @model_validator(mode="after")
    def _check_elastic_start(self) -> Self:
        if self.elastic_start is not None and self.mode == "affine":
            raise ValueError("elastic_start needs mode elastic or joint, got affine")
        return self


load_refine = RefineConfig.of_config
