"""Typed settings of jobs that register images to a fixed one.

Rules as in `scripts.settings.section`. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, field_validator

from scripts.settings.section import Flag, Number, Section, Size, Text, setting, to_names

__all__ = [
    "EstimateAffineConfig",
    "ImagePairs",
    "RegisterElasticConfig",
    "check_distinct",
    "image_name",
    "load_estimate_affine",
    "load_register_elastic",
    "to_paths",
]


def image_name(path: str | Path) -> str:
    """A file's name without ``.nii`` or ``.nii.gz``, which names the results of a pair."""
    name = Path(path).name
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def check_distinct(names: list[str]) -> list[str]:
    """Refuse empty and repeated entries."""
    if len(set(names)) < len(names):
        raise ValueError("has an entry twice")
    if any(not name.strip() for name in names):
        raise ValueError("has an empty entry")
    return names


def to_paths(value: object) -> object:
    """Accept one path, or a list of them."""
    return [value] if isinstance(value, str) else to_names(value)


class ImagePairs(Section):
    """Settings of the images: the fixed one, and those to register to it."""

    fixed: Text = setting("", "The fixed image: the others are registered to it.", "a path")
    moving: Annotated[list[str], BeforeValidator(to_paths)] = setting(
        [], "The moving images.", "a non-empty list of paths of differently named images"
    )
    device: Text = setting(
        "cpu",
        "Device for the computation.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )

    @field_validator("fixed")
    @classmethod
    def _check_fixed(cls, fixed: str) -> str:
        if not fixed.strip():
            raise ValueError("is missing")
        return fixed

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

    start: Text | None = setting(
        None,
        "Affine that aligns the moving image with the fixed one first: ITK's .mat, .txt or .tfm, "
        "or 4x4 text in RAS mm; `{name}` stands for the moving image's file name without its "
        "suffix. Null: the images are already aligned in the world.",
        "null or a path",
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) replaces x.",
        gt=0,
    )
    verify_jacobian: Flag = setting(True, "End without publishing if a field folds (det J <= 0).")


load_estimate_affine = EstimateAffineConfig.of_config
load_register_elastic = RegisterElasticConfig.of_config
