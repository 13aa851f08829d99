"""Typed settings of the ``learned_affine:`` block; torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from scripts.settings.pairwise import (
    AUGMENTATIONS,
    FoldedConfig,
    PairImagesConfig,
    PairOptimizerConfig,
    check_augmentations,
)
from scripts.settings.section import Section, section, setting, to_section
from scripts.settings.values import Number, Size, Texts

__all__ = ["LearnedAffineConfig", "load_learned_affine"]


class LearnedAffineModelConfig(Section):
    """Settings of the network."""

    key_path: ClassVar[str] = "learned_affine.model"

    kind: Literal["parameters", "keypoints"] = setting(
        "parameters",
        "parameters: a ResNet-18 that estimates the transform's parameters; keypoints: features "
        "whose centres of mass are matched by least squares.",
        "parameters or keypoints",
    )
    pair: Literal["channels", "towers"] = setting(
        "channels",
        "How the parameter network processes a pair: as two channels, or in two towers with shared "
        "weights whose features are concatenated. The keypoint network always has towers.",
        "channels or towers",
    )
    backbone: Literal["unet", "resnet"] = setting(
        "unet", "Features of the keypoint network.", "unet or resnet"
    )
    keypoints: Size = setting(32, "Keypoints of the keypoint network.", ge=4)
    width: Number = setting(
        0.25,
        "Width of the networks: 1 is the ResNet-18 with 64 to 512 channels.",
        "a number >= 0.125 and <= 2",
        ge=0.125,
        le=2,
    )
    passes: Size = setting(
        1,
        "Passes of the cascade: each gets the original moving image, warped by the combined result "
        "of the passes before it.",
        ge=1,
        le=8,
    )
    ridge: Number = setting(
        1e-4,
        "Regularisation of an affine solution of the keypoint network towards the identity, "
        "relative to the variance of the keypoints.",
        ge=0,
    )


class LearnedAffinePairsConfig(Section):
    """Settings of the pairs, which are made on the fly from single images."""

    key_path: ClassVar[str] = "learned_affine.pairs"

    rotation: Number = setting(
        30.0,
        "Largest rotation about each axis, degrees (beyond 90 a rotation has several sets of "
        "angles).",
        "a number >= 0 and <= 90",
        ge=0,
        le=90,
    )
    translation: Number = setting(
        0.25,
        "Largest translation along each axis, as a ratio of half the image width.",
        "a number >= 0 and <= 1",
        ge=0,
        le=1,
    )
    scale: Number = setting(0.15, "Largest deviation of a scale from 1.", ge=0, lt=1)
    shear: Number = setting(0.1, "Largest shear.", ge=0, lt=1)
    pose: Number = setting(
        0.3,
        "Both images of a pair get random poses first, with up to this share of the ranges.",
        "a number >= 0 and <= 1",
        ge=0,
        le=1,
    )
    warp: Number = setting(
        0.0,
        "Each image of a pair is warped by a smooth random field with this root mean square, in "
        "voxels of the network's grid, to imitate differences between people.",
        ge=0,
    )
    augmentations: Texts = setting(
        list(AUGMENTATIONS),
        "Changes to the intensities of both images of a pair, made independently.",
        f"a list out of {', '.join(AUGMENTATIONS)}, without duplicates",
    )
    probability: Number = setting(
        0.5, "Probability of each augmentation.", "a number >= 0 and <= 1", ge=0, le=1
    )

    _augmentations = field_validator("augmentations")(check_augmentations)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.rotation == self.translation == self.scale == self.shear == 0:
            raise ValueError("rotation, translation, scale and shear are all 0: nothing to learn")
        return self


class LearnedAffineLossConfig(Section):
    """Weights of the loss terms."""

    key_path: ClassVar[str] = "learned_affine.loss"

    parameter_weight: Number = setting(
        1.0,
        "Weight of the squared error of the parameters (for the keypoint network: of the matrix, "
        "with lengths in half widths).",
        ge=0,
    )
    image_weight: Number = setting(
        0.0,
        "Weight of the squared difference of the aligned images without augmentation.",
        ge=0,
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.parameter_weight == self.image_weight == 0:
            raise ValueError("parameter_weight and image_weight are both 0; one must be > 0")
        return self


class LearnedAffineImagesConfig(PairImagesConfig):
    """Where images are found, and the grid on which the network sees them."""

    key_path: ClassVar[str] = "learned_affine.images"


class LearnedAffineOptimizerConfig(PairOptimizerConfig):
    """How long and how fast the network learns."""

    key_path: ClassVar[str] = "learned_affine.optimizer"


class LearnedAffineConfig(FoldedConfig):
    """The whole ``learned_affine:`` block."""

    key_path: ClassVar[str] = "learned_affine"
    less_memory: ClassVar[str] = (
        "use learned_affine#dtype bfloat16, a smaller learned_affine#optimizer#batch_size or "
        "a smaller learned_affine#images#shape"
    )

    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32",
        "Autocast type of the convolutions; matrices are float64, resampling is float32.",
        "one of float16, float32, bfloat16",
    )
    family: Literal["rigid", "rigid_isotropic", "rigid_anisotropic", "affine"] = setting(
        "affine",
        "Transform model that the network estimates.",
        "one of rigid, rigid_isotropic, rigid_anisotropic, affine",
    )
    images: Annotated[LearnedAffineImagesConfig, BeforeValidator(to_section)] = section(
        LearnedAffineImagesConfig, "Images, and the grid of the network."
    )
    model: Annotated[LearnedAffineModelConfig, BeforeValidator(to_section)] = section(
        LearnedAffineModelConfig, "The network."
    )
    pairs: Annotated[LearnedAffinePairsConfig, BeforeValidator(to_section)] = section(
        LearnedAffinePairsConfig, "Synthetic pairs."
    )
    loss: Annotated[LearnedAffineLossConfig, BeforeValidator(to_section)] = section(
        LearnedAffineLossConfig, "Terms of the loss."
    )
    optimizer: Annotated[LearnedAffineOptimizerConfig, BeforeValidator(to_section)] = section(
        LearnedAffineOptimizerConfig, "Training."
    )


load_learned_affine = LearnedAffineConfig.of_config
