"""Settings of the atlas's templates and network, and the rules of a U-Net's features."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import ValidationInfo, field_validator

from scripts.settings.checks import check_names
from scripts.settings.section import Section, setting
from scripts.settings.usual_training import AUTO
from scripts.settings.values import FilePath, Flag, Integer, Number, Size, Sizes, Texts

__all__ = [
    "LearnedAtlasModelConfig",
    "check_decoder",
    "check_features",
    "check_field_resolution",
]


def check_features(features: list[int]) -> list[int]:
    """Check numbers of channels, each at least 1."""
    if not features:
        raise ValueError("is empty")
    if min(features) < 1:
        raise ValueError(f"has an entry below 1: {min(features)}")
    return features


def check_decoder(features: list[int], info: ValidationInfo) -> list[int]:
    """Check that there are at least as many convolutions as encoder levels."""
    levels = len(info.data.get("enc_features", ()))
    if len(features) < levels:
        raise ValueError(f"has {len(features)} entries for {levels} upsampling steps")
    return features


def check_field_resolution(factor: int, info: ValidationInfo) -> int:
    """Check that the encoder has enough levels for the factor."""
    if factor not in (1, 2, 4):
        raise ValueError("is not allowed")
    levels = len(info.data.get("enc_features", (1, 1)))
    if factor > 2**levels:
        raise ValueError(f"needs more than {levels} encoder level")
    return factor


class LearnedAtlasModelConfig(Section):
    """Settings of the templates and of the network that predicts fields."""

    key_path: ClassVar[str] = "learned_atlas.model"

    channels: Size = setting(1, "Tracts learned jointly under one deformation.", ge=1)
    n_templates: Size = setting(1, "Templates in the mixture (K).", ge=1)
    mixture_sharpness: Number = setting(
        50.0,
        "Sharpness of the assignment of subjects to templates by loss: exp(-sharpness * loss).",
        gt=0,
    )
    covariates: Texts = setting(
        [],
        "Columns of cohort.participants that the template depends on (a conditional template). "
        "Numbers are standardised, anything else is a category. Empty: one template for all.",
        "a list of distinct, non-empty names other than participant_id, without = or comma; with "
        "any, n_templates must be 1 and refine.rounds >= 1",
    )
    categorical_covariates: Texts = setting(
        [],
        "Covariates whose numbers are names of categories, such as the site.",
        "a list of distinct names out of covariates",
    )
    int_steps: Integer = setting(
        7,
        "Scaling-and-squaring steps; 0 takes the network's output as the displacement.",
        ge=0,
        le=10,
    )
    enc_features: Sizes = setting(
        [16, 32, 32, 32],
        "Channels of the encoder's convolutions at full, 1/2, 1/4, ... resolution.",
        "a non-empty list of integers, each >= 1",
    )
    dec_features: Sizes = setting(
        [32, 32, 32, 16, 16],
        "Channels of the decoder's convolutions: one per encoder level before upsampling, then "
        "those at full resolution.",
        "a non-empty list of integers, each >= 1, at least as long as enc_features (one "
        "upsampling step per encoder level)",
    )
    field_resolution: Integer = setting(
        2,
        "The field is predicted and integrated at 1/this of the grid's resolution.",
        "1, 2 or 4; 4 needs at least two levels in enc_features",
    )
    initial: FilePath | None = setting(
        None,
        "Initial network: `shipped`, the pretrained one that comes with the bundle and registers "
        "cohorts it has never seen; the file of a model (model.pt, or what "
        "configs/train_registration.yaml leaves), whose U-Net is taken; null, random weights; "
        "auto, shipped unless enc_features, dec_features or field_resolution are other than its "
        "own. Such a network brings its own features.",
        "auto, null, shipped, or the path of a .pt file",
    )
    passes: Sizes | None = setting(
        None,
        "Passes of the network over a pair. Each gets the template as warped so far and the "
        "subject, both averaged by its factor, and adds to the velocity. Null: those of the "
        "initial network ([4, 2, 2, 2, 1, 1] of the shipped one); without one [2, 1, 1], used once "
        "refine.network_epochs has trained more than one.",
        "null or a non-empty list of 1, 2, 4 and 8, at most 8 of them",
    )
    velocity_smoothing: Number = setting(
        3.0,
        "Standard deviation, in voxels, of the Gaussian that smooths every velocity: the network's "
        "output and the steps of a refinement. 0: no smoothing.",
        ge=0,
    )
    checkpointing: Flag = setting(
        False,
        "Recompute activations in the backward pass: less memory, more time.",
    )

    @field_validator("covariates")
    @classmethod
    def _check_covariates(cls, names: list[str], info: ValidationInfo) -> list[str]:
        check_names(names)
        for name in names:
            if re.search(r"[=,\x00-\x1f]", name) or name in ("participant_id", "mean"):
                raise ValueError(f"names {name!r}, which can't be a covariate")
        if names and info.data.get("n_templates", 1) > 1:
            raise ValueError(
                "several templates (n_templates) that each depend on covariates aren't supported"
            )
        return names

    @field_validator("categorical_covariates")
    @classmethod
    def _check_categorical(cls, names: list[str], info: ValidationInfo) -> list[str]:
        check_names(names)
        unknown = [name for name in names if name not in info.data.get("covariates", names)]
        if unknown:
            raise ValueError(f"names {unknown[0]!r}, which is not in covariates")
        return names

    _features = field_validator("enc_features", "dec_features")(check_features)
    _decoder = field_validator("dec_features")(check_decoder)

    @property
    def passes_from_nothing(self) -> list[int]:
        """The passes of a network that learns from random weights."""
        return self.passes or [2, 1, 1]

    @field_validator("initial")
    @classmethod
    def _check_initial(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name == AUTO:
            of_shipped = ("enc_features", "dec_features", "field_resolution")  # their defaults
            fits = all(info.data.get(one) == cls.model_fields[one].default for one in of_shipped)
            return "shipped" if fits else None
        if name is not None and name != "shipped" and not name.endswith(".pt"):
            raise ValueError("is none of them")
        return name

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, factors: list[int] | None) -> list[int] | None:
        if factors is None:
            return None
        if not 1 <= len(factors) <= 8:
            raise ValueError(f"has {len(factors)} entries")
        for factor in factors:
            if factor not in (1, 2, 4, 8):
                raise ValueError(f"has an entry that is not allowed: {factor}")
        return factors

    _field_resolution = field_validator("field_resolution")(check_field_resolution)
