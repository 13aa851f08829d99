"""Typed settings of jobs that register images to a fixed one.

Rules as in `scripts.settings.section`. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.runtime.file_names import stem_of
from scripts.settings.checks import check_given
from scripts.settings.section import Section, setting
from scripts.settings.transforms import ONE_TRANSFORM, Start
from scripts.settings.values import FilePath, Flag, Number, Size, Text, Typed, to_list, to_path

__all__ = [
    "EstimateAffineConfig",
    "ImagePairs",
    "Paths",
    "RegisterElasticConfig",
    "check_distinct",
    "image_name",
    "load_estimate_affine",
    "load_register_elastic",
]


def image_name(path: str | Path) -> str:
    """A file's name without an image's ending, which names the results of a pair."""
    return stem_of(path)


def check_distinct(names: list[str]) -> list[str]:
    """Refuse empty and repeated entries."""
    if len(set(names)) < len(names):
        raise ValueError("has an entry twice")
    if any(not name.strip() for name in names):
        raise ValueError("has an empty entry")
    return names


def _to_paths(value: object) -> object:
    """One path, or a list of them."""
    paths = [value] if isinstance(value, str) else to_list(value)
    return [to_path(path) for path in paths]


Paths = Annotated[list[str], BeforeValidator(_to_paths), Typed("paths")]


class ImagePairs(Section):
    """Settings of the images: the fixed one, and those to register to it."""

    fixed: FilePath = setting("", "The fixed image.", "a path")
    moving: Paths = setting(
        [], "The moving images.", "a non-empty list of paths of differently named images"
    )
    device: Text = setting(
        "cpu",
        "Device for the computation.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )

    _fixed = field_validator("fixed")(check_given)

    @field_validator("moving")
    @classmethod
    def _check_moving(cls, moving: list[str]) -> list[str]:
        if not moving:
            raise ValueError("is empty")
        names = [image_name(path) for path in check_distinct(moving)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"has several images named {', '.join(twice)}")
        return moving

    def pairs(self) -> list[dict[str, str]]:
        """One dictionary per pair: ``subject`` (the moving image's name), ``fixed``, ``moving``."""
        return [
            {"subject": image_name(path), "fixed": self.fixed, "moving": path}
            for path in self.moving
        ]


class EstimateAffineConfig(ImagePairs):
    """The whole ``estimate_affine:`` block."""

    key_path: ClassVar[str] = "estimate_affine"

    passes: Size | None = setting(
        None,
        "Passes of the cascade. Null: the number used in training.",
        ge=1,
    )


class RegisterElasticConfig(ImagePairs):
    """The whole ``register_elastic:`` block."""

    key_path: ClassVar[str] = "register_elastic"

    start: Start = setting(
        None,
        "Initial affine from fixed to moving; `{name}` in a path stands for the moving image's "
        "file name without its ending. For a matrix of flirt, the fixed and the moving image are "
        "those of the pair unless others are named. Null: the images are already aligned in world "
        "coordinates.",
        f"null, or {ONE_TRANSFORM}",
    )
    elastic_start: FilePath | None = setting(
        None,
        "File of an initial field from fixed to moving, as ITK, ANTs, refine and register-elastic "
        "write it. A point passes through the network's field, then through this field, then "
        "through the affine. `{name}` as in start.",
        "null or a path",
    )
    elastic_start_kind: Literal["displacement", "velocity"] = setting(
        "displacement",
        "Meaning of the vectors in elastic_start's file: a displacement, or a stationary velocity "
        "whose flow is the displacement.",
        "displacement or velocity",
    )
    network: Literal["auto", "trained", "shipped"] = setting(
        "auto",
        "trained: the network of train-elastic in the models folder; shipped: the pretrained "
        "registration network; auto: trained if there is one.",
        "auto, trained or shipped",
    )
    contrast: Literal["same", "other", "auto"] = setting(
        "auto",
        "Contrast of the images: same; other: the moving image's intensities are matched to the "
        "fixed one's, before each pass of the shipped network and before a result is judged; "
        "auto: other if that raises their correlation by more than 0.15.",
        "same, other or auto",
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) replaces x.",
        gt=0,
    )
    verify_jacobian: Flag = setting(True, "End without publishing if a field folds (det J <= 0).")


load_estimate_affine = EstimateAffineConfig.of_config
load_register_elastic = RegisterElasticConfig.of_config
