"""Typed settings of the ``learned_elastic:`` block; torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from scripts.settings.atlas_model import (
    check_decoder,
    check_features,
    check_field_resolution,
)
from scripts.settings.cohort import SubjectSearch, check_tracts
from scripts.settings.pairwise import (
    AUGMENTATIONS,
    FoldedConfig,
    PairImagesConfig,
    PairOptimizerConfig,
    check_augmentations,
)
from scripts.settings.section import Section, section, setting, to_section
from scripts.settings.values import Integer, Names, Number, Sizes, Texts, to_list

__all__ = ["LearnedElasticConfig", "load_learned_elastic"]

Numbers = Annotated[list[Number], BeforeValidator(to_list)]


class LearnedElasticImagesConfig(PairImagesConfig):
    """Settings of the label maps to learn from, and of the network's grid."""

    key_path: ClassVar[str] = "learned_elastic.images"
    learns_labels: ClassVar[bool] = True

    kind: Literal["presence", "labels"] = setting(
        "presence",
        "presence: density maps, each thresholded at shares of its maximum; labels: label volumes "
        "of whole numbers, 0 for background, at `pattern` or, with images to measure with at "
        "`pattern`, at `labels`.",
        "presence or labels",
    )
    levels: Numbers = setting(
        [0.02, 0.1, 0.3],
        "Shares of its maximum above which a density counts as present; each gives a separate map.",
        "a non-empty list of different numbers >= 0 and < 1",
        min_length=1,
    )
    tracts: Names = setting(
        [], "Tracts whose maps are taken, as in `learned_atlas#cohort#tracts`.",
        "a list of distinct tract names, or empty",
    )  # fmt: skip

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: list[float]) -> list[float]:
        if not all(0 <= level < 1 for level in levels):
            raise ValueError("contains a number out of range")
        if len(set(levels)) < len(levels):
            raise ValueError("contains a number twice")
        return levels

    _tracts = field_validator("tracts")(check_tracts)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.labels is not None and self.kind != "labels":
            raise ValueError(f"labels = {self.labels!r} needs kind labels, got {self.kind}")
        return self

    def subject_search(self) -> SubjectSearch:
        """Where to look for subjects, with a channel for each tract."""
        tracts = tuple(self.tracts)
        return replace(super().subject_search(), tracts=tracts, channels=max(1, len(tracts)))


class LearnedElasticModelConfig(Section):
    """Settings of the network: the atlas's U-Net and integration."""

    key_path: ClassVar[str] = "learned_elastic.model"

    int_steps: Integer = setting(
        7, "Scaling-and-squaring steps; 0: plain displacement.",
        ge=0, le=10,
    )  # fmt: skip
    enc_features: Sizes = setting(
        [16, 32, 32, 32],
        "Channels of the encoder's convolutions at full, 1/2, 1/4, ... resolution.",
        "a non-empty list of integers, each >= 1",
    )
    dec_features: Sizes = setting(
        [32, 32, 32, 16, 16],
        "Channels of the decoder's convolutions.",
        "a non-empty list of integers, each >= 1, at least as long as enc_features",
    )
    field_resolution: Integer = setting(
        2,
        "The field is predicted and integrated at 1/this of the grid's resolution.",
        "1, 2 or 4; 4 needs at least two levels in enc_features",
    )

    _features = field_validator("enc_features", "dec_features")(check_features)
    _decoder = field_validator("dec_features")(check_decoder)
    _field_resolution = field_validator("field_resolution")(check_field_resolution)


class LearnedElasticSynthesisConfig(Section):
    """How label maps become pairs of images."""

    key_path: ClassVar[str] = "learned_elastic.synthesis"

    warp: Number = setting(
        1.5,
        "Each label map is warped by a smooth random field of this root mean square, voxels.",
        ge=0,
    )
    between_subjects: Number = setting(
        0.5,
        "Probability that a pair is made from the label maps of two subjects instead of one.",
        "a number >= 0 and <= 1",
        ge=0,
        le=1,
    )
    empty_background: Number = setting(
        0.5,
        "Probability that the background is 0 instead of a random grey value.",
        "a number >= 0 and <= 1",
        ge=0,
        le=1,
    )
    augmentations: Texts = setting(
        ["bias_field", "contrast", "noise", "smoothing", "gibbs", "low_resolution"],
        "Changes to the synthetic images, made independently.",
        f"a list out of {', '.join(AUGMENTATIONS)}, without duplicates",
    )
    probability: Number = setting(
        0.5, "Probability of each augmentation.", "a number >= 0 and <= 1", ge=0, le=1
    )

    _augmentations = field_validator("augmentations")(check_augmentations)

    @model_validator(mode="after")
    def _check_difference(self) -> Self:
        if self.warp == self.between_subjects == 0:
            raise ValueError("warp and between_subjects are both 0: nothing to register")
        return self


class LearnedElasticLossConfig(Section):
    """Weights of the loss terms."""

    key_path: ClassVar[str] = "learned_elastic.loss"

    overlap_weight: Number = setting(1.0, "Weight of the soft Dice of the labels.", gt=0)
    smoothness_weight: Number = setting(0.3, "Weight of the velocity's squared gradient.", ge=0)


class LearnedElasticOptimizerConfig(PairOptimizerConfig):
    """Length and speed of the training."""

    key_path: ClassVar[str] = "learned_elastic.optimizer"

    batch_size: Integer = setting(2, "Pairs per step.", ge=1)


class LearnedElasticConfig(FoldedConfig):
    """The whole ``learned_elastic:`` block."""

    key_path: ClassVar[str] = "learned_elastic"
    less_memory: ClassVar[str] = (
        "use learned_elastic#dtype bfloat16, a smaller learned_elastic#optimizer#batch_size or "
        "a smaller learned_elastic#images#shape"
    )

    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32",
        "Autocast type of the convolutions; warps, integration and losses stay float32.",
        "one of float16, float32, bfloat16",
    )
    images: Annotated[LearnedElasticImagesConfig, BeforeValidator(to_section)] = section(
        LearnedElasticImagesConfig, "Label maps, and the grid of the network."
    )
    model: Annotated[LearnedElasticModelConfig, BeforeValidator(to_section)] = section(
        LearnedElasticModelConfig, "The network."
    )
    synthesis: Annotated[LearnedElasticSynthesisConfig, BeforeValidator(to_section)] = section(
        LearnedElasticSynthesisConfig, "Synthetic images."
    )
    loss: Annotated[LearnedElasticLossConfig, BeforeValidator(to_section)] = section(
        LearnedElasticLossConfig, "Terms of the loss."
    )
    optimizer: Annotated[LearnedElasticOptimizerConfig, BeforeValidator(to_section)] = section(
        LearnedElasticOptimizerConfig, "Training."
    )


load_learned_elastic = LearnedElasticConfig.of_config
