"""Typed settings of the ``learned_affine:`` block; rules as in `scripts.settings`, torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from scripts.sections import (
    Flag,
    Integer,
    Integers,
    Number,
    Section,
    Text,
    Texts,
    section,
    setting,
    to_int,
    to_names,
    to_section,
)
from scripts.settings import LearnedAtlasCohortConfig, LearnedAtlasConfig

__all__ = [
    "AUGMENTATIONS",
    "FoldedConfig",
    "LearnedAffineConfig",
    "LearnedAffineImagesConfig",
    "LearnedAffineOptimizerConfig",
    "load_learned_affine",
]

AUGMENTATIONS = (
    "bias_field", "contrast", "noise", "smoothing", "histogram_shift", "gibbs", "dropout",
    "low_resolution",
)  # fmt: skip


def _to_fold(value: object) -> object:
    return None if value is None else to_int(value)


class LearnedAffineImagesConfig(Section):
    """Where images are found, and the grid on which the network sees them."""

    key_path: ClassVar[str] = "learned_affine.images"

    layout: Literal["probtrackx2", "mrtrix3", "xtract", "tractseg", "bids", "flat"] = setting(
        "probtrackx2",
        "Known arrangement of the dataset folder.",
        "one of probtrackx2, mrtrix3, xtract, tractseg, bids, flat",
    )
    pattern: Text | None = setting(
        None,
        "Path of an image inside the dataset folder, as in `learned_atlas#cohort#pattern`; takes "
        "the place of the layout. Several images of a subject are summed.",
        "null or a path with {subject}, optionally {tract} and {run}",
    )
    subjects: Annotated[list[str] | str | None, BeforeValidator(to_names)] = setting(
        None,
        "Subjects to use, as in `learned_atlas#cohort#subjects`.",
        "null, a non-empty list of distinct names, or the path of a .txt or .csv file",
    )
    exclude: Texts = setting(
        [], "Names of subjects to leave out.", "a list of distinct, non-empty names"
    )
    shape: Integers = setting(
        [32, 32, 32],
        "Voxels of the network's grid. Every image is brought onto it about its own centre.",
        "a list of 2 or 3 integers, each >= 16",
    )
    spacing: Number | None = setting(
        None,
        "Voxel size of that grid in mm. Null: the smallest at which it holds every image.",
        "null or a number > 0",
        gt=0,
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) takes the place of x. Null for images of "
        "ordinary contrast.",
        "null or a number > 0",
        gt=0,
    )

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: list[int]) -> list[int]:
        if len(shape) not in (2, 3):
            raise ValueError(f"has {len(shape)} entries")
        if min(shape) < 16:
            raise ValueError(f"has an entry below 16: {min(shape)}")
        return shape

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        return LearnedAtlasCohortConfig._check_pattern(pattern)

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, subjects: list[str] | str | None) -> list[str] | str | None:
        return LearnedAtlasCohortConfig._check_subjects(subjects)

    @field_validator("exclude")
    @classmethod
    def _check_exclude(cls, names: list[str]) -> list[str]:
        return LearnedAtlasCohortConfig._check_exclude(names)

    def discovery(self) -> LearnedAtlasConfig:
        """The same as the atlas's settings, which the search for subjects reads."""
        shared = {
            name: getattr(self, name) for name in ("layout", "pattern", "subjects", "exclude")
        }
        return LearnedAtlasConfig.load({"cohort": {**shared, "normalisation": "none"}})


class LearnedAffineModelConfig(Section):
    """The network."""

    key_path: ClassVar[str] = "learned_affine.model"

    kind: Literal["parameters", "keypoints"] = setting(
        "parameters",
        "parameters: a ResNet-18 that gives the transform's parameters; keypoints: features whose "
        "centres of mass are matched by least squares.",
        "parameters or keypoints",
    )
    pair: Literal["channels", "towers"] = setting(
        "channels",
        "How the parameter network sees a pair: as two channels, or through two towers of equal "
        "weights whose features are concatenated. The keypoint network has towers by nature.",
        "channels or towers",
    )
    backbone: Literal["unet", "resnet"] = setting(
        "unet", "Features of the keypoint network.", "unet or resnet"
    )
    keypoints: Integer = setting(32, "Keypoints of the keypoint network.", "an integer >= 4", ge=4)
    width: Number = setting(
        0.25,
        "Width of the networks: 1 is the ResNet-18 of 64 to 512 channels.",
        "a number >= 0.125 and <= 2",
        ge=0.125,
        le=2,
    )
    passes: Integer = setting(
        1,
        "Passes of the cascade: each sees the original moving image, warped by what the passes "
        "before it found together.",
        "an integer from 1 to 8",
        ge=1,
        le=8,
    )
    ridge: Number = setting(
        1e-4,
        "Pull of an affine solution of the keypoint network to the identity, relative to the "
        "keypoints' variance.",
        "a number >= 0",
        ge=0,
    )


class LearnedAffinePairsConfig(Section):
    """Pairs made on the fly from single images."""

    key_path: ClassVar[str] = "learned_affine.pairs"

    rotation: Number = setting(
        30.0,
        "Largest rotation about each axis, degrees (beyond 90 one rotation has several sets of "
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
    scale: Number = setting(
        0.15, "Largest deviation of a scale from 1.", "a number >= 0 and < 1", ge=0, lt=1
    )
    shear: Number = setting(0.1, "Largest shear.", "a number >= 0 and < 1", ge=0, lt=1)
    pose: Number = setting(
        0.3,
        "Both images of a pair are posed at random beforehand, by up to this share of the ranges.",
        "a number >= 0 and <= 1",
        ge=0,
        le=1,
    )
    warp: Number = setting(
        0.0,
        "Each image of a pair is warped by a smooth random field of this root mean square in "
        "voxels of the network's grid, as different people differ.",
        "a number >= 0",
        ge=0,
    )
    augmentations: Texts = setting(
        list(AUGMENTATIONS),
        "What is done to the intensities of both images of a pair, independently.",
        f"a list out of {', '.join(AUGMENTATIONS)}, without duplicates",
    )
    probability: Number = setting(
        0.5, "How often each augmentation is applied.", "a number >= 0 and <= 1", ge=0, le=1
    )

    @field_validator("augmentations")
    @classmethod
    def _check_augmentations(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in AUGMENTATIONS:
                raise ValueError(f"names {name!r}, which is no augmentation")
        if len(set(names)) < len(names):
            raise ValueError("names one twice")
        return names

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.rotation == self.translation == self.scale == self.shear == 0:
            raise ValueError("rotation, translation, scale and shear are all 0: nothing to learn")
        return self


class LearnedAffineLossConfig(Section):
    """Terms of the loss."""

    key_path: ClassVar[str] = "learned_affine.loss"

    parameter_weight: Number = setting(
        1.0,
        "Weight of the squared error of the parameters (keypoint network: of the matrix, lengths "
        "in half widths).",
        "a number >= 0",
        ge=0,
    )
    image_weight: Number = setting(
        0.0,
        "Weight of the squared difference of the images without augmentation, once aligned.",
        "a number >= 0",
        ge=0,
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.parameter_weight == self.image_weight == 0:
            raise ValueError("parameter_weight and image_weight are both 0; one must be > 0")
        return self


class LearnedAffineOptimizerConfig(Section):
    """How long and how fast the network learns."""

    key_path: ClassVar[str] = "learned_affine.optimizer"

    lr: Number = setting(1e-3, "Adam's largest learning rate.", "a number > 0", gt=0)
    epochs: Integer = setting(50, "Passes over the training subjects.", "an integer >= 1", ge=1)
    pairs_per_subject: Integer = setting(
        4, "Pairs made of each subject in an epoch.", "an integer >= 1", ge=1
    )
    batch_size: Integer = setting(4, "Pairs per step.", "an integer >= 1", ge=1)
    seed: Integer = setting(0, "Seed of every random choice.", "an integer >= 0", ge=0)
    gradient_clip: Number = setting(
        1.0, "Greatest norm of a step's gradient; longer ones are scaled down.", "a number > 0",
        gt=0,
    )  # fmt: skip
    validation_pairs: Integer = setting(
        4, "Pairs made of each held-out subject to measure with.", "an integer >= 1", ge=1
    )
    validation_interval: Integer = setting(
        10, "Epochs between measurements; the last one is always measured.", "an integer >= 1", ge=1
    )


class FoldedConfig(Section):
    """What every training over folds of subjects has at the top of its block."""

    device: Text = setting(
        "cuda", "Where to compute.", "cpu, cuda or cuda:N", pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$"
    )
    folds: Integer = setting(
        5, "Folds of the cross-validation; a subject is in exactly one.", "an integer >= 2", ge=2
    )
    fold: Annotated[int | None, BeforeValidator(_to_fold)] = setting(
        0,
        "The fold to measure with, the others are trained on. Null: train on everyone.",
        "null or an integer >= 0 and below folds",
    )
    min_subjects: Integer = setting(
        2, "Fewest usable subjects to go on with.", "an integer >= 1", ge=1
    )
    resume: Flag = setting(
        True, "Go on from the checkpoint of an interrupted run, if there is one.", "true or false"
    )

    @field_validator("fold")
    @classmethod
    def _check_fold(cls, fold: int | None, info: ValidationInfo) -> int | None:
        if fold is not None and not 0 <= fold < info.data.get("folds", fold + 1):
            raise ValueError("is no fold")
        return fold


class LearnedAffineConfig(FoldedConfig):
    """The whole ``learned_affine:`` block."""

    key_path: ClassVar[str] = "learned_affine"

    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32",
        "Autocast type of the convolutions; matrices are float64, resampling is float32.",
        "one of float16, float32, bfloat16",
    )
    family: Literal["rigid", "rigid_isotropic", "rigid_anisotropic", "affine"] = setting(
        "affine",
        "Transforms that the network gives.",
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
