"""Typed settings of the ``train_fields:`` block; torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from scripts.settings.checks import check_given
from scripts.settings.field_losses import mixture_of
from scripts.settings.folds import FOLDS, check_fold
from scripts.settings.pair_selection import DEVICE, PairSelection, to_optional_int
from scripts.settings.pairwise import AUGMENTATIONS
from scripts.settings.schedules import RateScheduleConfig
from scripts.settings.section import Section, section, setting, to_section
from scripts.settings.values import FilePath, Flag, Integer, Integers, Number, Text, Texts

__all__ = [
    "FIELD_AUGMENTATIONS",
    "NETWORKS",
    "TrainFieldsAugmentConfig",
    "TrainFieldsConfig",
    "TrainFieldsModelConfig",
    "load_train_fields",
]

NETWORKS = ("global", "local", "merged")
FIELD_AUGMENTATIONS = (*AUGMENTATIONS, "blur", "gain", "offset", "invert")
_DEFAULT_LOSSES = {
    ("global", False): ["ncc_9", "vector_distance"],
    ("local", True): ["ncc_9", "vector_distance&vdclip2", "vector_distance"],
    ("local", False): ["ncc_9", "vector_distance&vdclip2"],
    ("merged", False): ["ncc_9", "vector_distance"],
}


class TrainFieldsModelConfig(Section):
    """The networks."""

    key_path: ClassVar[str] = "train_fields.model"

    inputs: Literal["images", "forces"] = setting(
        "images",
        "Input of a network: both images; or also their locally normalised copies and the forces "
        "of demons registration.",
        "images or forces",
    )
    global_filters: Integers = setting(
        [16, 16, 32, 32, 32],
        "Global network: channels of each pair of convolutions, which halves the size.",
        "a non-empty list of integers, each >= 1",
    )
    dense: Integer = setting(40, "Global network: size of its dense layer.", ge=1)
    start_filters: Integers = setting(
        [16], "Local network: channels at full size.", "a non-empty list of integers, each >= 1"
    )
    down_filters: Integers = setting(
        [16, 32, 32, 32],
        "Local network: channels after each halving.",
        "a non-empty list of integers, each >= 1",
    )
    middle_filters: Integers = setting(
        [32], "Local network: channels at the smallest size.",
        "a list of integers, each >= 1, or empty",
    )  # fmt: skip
    up_filters: Integers = setting(
        [32, 32, 32, 32],
        "Local network: channels after each doubling.",
        "a list of integers, each >= 1, as many as down_filters",
    )
    end_filters: Integers = setting(
        [64, 64], "Local network: channels before the field, at full size.",
        "a list of integers, each >= 1, or empty",
    )  # fmt: skip
    compute_inv: Flag = setting(
        True, "Local network: also learn the field of the swapped pair, with the same weights."
    )

    @field_validator(
        "global_filters", "start_filters", "down_filters", "middle_filters", "up_filters",
        "end_filters",
    )  # fmt: skip
    @classmethod
    def _check_filters(cls, filters: list[int], info: ValidationInfo) -> list[int]:
        if any(one < 1 for one in filters):
            raise ValueError("has an entry below 1")
        if not filters and info.field_name not in ("middle_filters", "end_filters"):
            raise ValueError("is empty")
        if info.field_name == "up_filters":
            down = info.data.get("down_filters")
            if down is not None and len(filters) != len(down):
                raise ValueError(f"has {len(filters)} entries, down_filters has {len(down)}")
        return filters


class TrainFieldsAugmentConfig(Section):
    """Random changes of intensity; fields and targets stay unchanged."""

    key_path: ClassVar[str] = "train_fields.augment"

    augment_ref: Texts = setting(
        [],
        "What is done to reference images.",
        f"a list out of {', '.join(FIELD_AUGMENTATIONS)}, without duplicates",
    )
    augment_mov: Texts = setting(
        [],
        "What is done to moving images.",
        f"a list out of {', '.join(FIELD_AUGMENTATIONS)}, without duplicates",
    )
    probability: Number = setting(
        0.5, "How often each augmentation is applied.", "a number >= 0 and <= 1", ge=0, le=1
    )

    @field_validator("augment_ref", "augment_mov")
    @classmethod
    def _check_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in FIELD_AUGMENTATIONS:
                raise ValueError(f"names {name!r}, which is not an augmentation")
        if len(set(names)) < len(names):
            raise ValueError("names one twice")
        return names


class TrainFieldsOptimizerConfig(RateScheduleConfig):
    """How long and how fast the network learns."""

    key_path: ClassVar[str] = "train_fields.optimizer"

    lr: Number = setting(1e-3, "Adam's largest learning rate.", gt=0)
    epochs: Integer = setting(
        20, "Passes over the pairs. 0, for a merged network: join both unchanged.", ge=0
    )
    batch_size: Integer = setting(4, "Pairs per step.", ge=1)
    gradient_clip: Number = setting(
        5.0, "Largest norm of a step's gradient; larger gradients are scaled down.", gt=0
    )
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    num_workers: Integer = setting(
        0,
        "Processes that read pairs beside the training; they need shared memory (/dev/shm) for two "
        "batches each.",
        ge=0,
    )
    validation_interval: Integer = setting(
        5, "Epochs between measurements on held-out pairs; the last one is always measured.", ge=1
    )


class TrainFieldsConfig(PairSelection):
    """The whole ``train_fields:`` block."""

    key_path: ClassVar[str] = "train_fields"
    less_memory: ClassVar[str] = (
        "use train_fields#dtype bfloat16 or a smaller train_fields#optimizer#batch_size"
    )

    network: Literal["global", "local", "merged"] = setting(
        "global",
        "global: an affine transform; local: a free field; merged: both, joined.",
        "global, local or merged",
    )
    device: Text = setting("cuda", "Where to compute.", **DEVICE)
    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "bfloat16",
        "Autocast type of the convolutions; fields, warps and losses stay float32.",
        "one of float16, float32, bfloat16",
    )
    folds: Integer = setting(
        FOLDS,
        "Folds over `dataset_id`; pairs of one specimen are in one fold, see "
        "docs/training.md#folds.",
        ge=2,
    )
    fold: Annotated[int | None, BeforeValidator(to_optional_int)] = setting(
        None,
        "The fold to measure with, the others are trained on. Null: measure with the pairs that "
        "`indexes` leaves out and whose specimens aren't trained on, if there are any.",
        "null or an integer >= 0 and below folds",
    )
    validation: FilePath | None = setting(
        None, "Another store for the measurements, instead of a fold.", "null or a path"
    )
    global_model: FilePath | None = setting(
        None,
        "A global network. Local: learn what it leaves, on its images (null: the original "
        "pairs). Merged: the one to join (null: `<ckpt_dir>/fields_global.pt`).",
        "null or a path",
    )
    local_model: FilePath | None = setting(
        None,
        "Merged: the local network to join. Null: `<ckpt_dir>/fields_local.pt`.",
        "null or a path",
    )
    start: FilePath | None = setting(
        None, "A saved network of the same settings to continue from, with its optimiser.",
        "null or a path",
    )  # fmt: skip
    losses: Annotated[list[Text] | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "A loss for each output: image, field, and with compute_inv the inverse field. Null: the "
        "network's defaults, see docs/supervised.md.",
        "null or a list of losses, each a name or a mixture such as 0.2*a&0.8*b",
    )
    losses_weights: Annotated[list[Number] | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "Weight of each loss. Null: 1 each.",
        "null or a list of numbers >= 0, not all 0, one per loss",
    )
    perceptual_weights: FilePath | None = setting(
        None,
        "Weights file of the perceptual losses, see docs/supervised.md#perceptual-losses.",
        "null or a path",
    )
    save: Literal["together", "separate"] = setting(
        "together",
        "together: one file with network, losses and optimiser, from which training can continue; "
        "separate: a folder with network.json and weights.pt.",
        "together or separate",
    )
    overwrite: Flag = setting(True, "Replace a network of the same name; false refuses it.")
    resume: Flag = setting(
        True, "Resume from the checkpoint of an interrupted run, if there is one."
    )
    model: Annotated[TrainFieldsModelConfig, BeforeValidator(to_section)] = section(
        TrainFieldsModelConfig, "The networks."
    )
    augment: Annotated[TrainFieldsAugmentConfig, BeforeValidator(to_section)] = section(
        TrainFieldsAugmentConfig, "Random changes of intensity."
    )
    optimizer: Annotated[TrainFieldsOptimizerConfig, BeforeValidator(to_section)] = section(
        TrainFieldsOptimizerConfig, "Training."
    )

    _pairs = field_validator("pairs")(check_given)

    _fold = field_validator("fold")(check_fold)

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        for number, text in enumerate(self.losses or ()):
            try:
                mixture_of(text, field=number > 0)
            except ValueError as error:
                raise ValueError(f"losses[{number}] = {text!r} {error}") from None
        names = self.loss_names()
        outputs = 3 if self.network == "local" and self.model.compute_inv else 2
        if len(names) != outputs:
            raise ValueError(
                f"losses has {len(names)} entries; a {self.network} network has {outputs} outputs: "
                f"{', '.join(('image', 'field', 'inverse field')[:outputs])}"
            )
        weights = self.loss_weights()
        if len(weights) != outputs or min(weights) < 0 or not any(weights):
            raise ValueError(
                f"losses_weights = {weights}: must be {outputs} numbers >= 0, not all 0"
            )
        return self

    @model_validator(mode="after")
    def _check_others(self) -> Self:
        if self.network != "merged" and self.optimizer.epochs == 0:
            raise ValueError("optimizer.epochs = 0 is for network merged, which joins two networks")
        if self.network == "global" and self.global_model is not None:
            raise ValueError("global_model is for the networks local and merged")
        if self.network != "merged" and self.local_model is not None:
            raise ValueError("local_model is for network merged")
        if self.fold is not None and self.validation is not None:
            raise ValueError("fold and validation exclude each other")
        if self.fold is not None and self.indexes is not None:
            raise ValueError("fold and indexes exclude each other")
        return self

    def loss_names(self) -> list[str]:
        """A loss for each output."""
        inverse = self.network == "local" and self.model.compute_inv
        return list(self.losses or _DEFAULT_LOSSES[self.network, inverse])

    def loss_weights(self) -> list[float]:
        """A weight for each loss."""
        if self.losses_weights is None:
            return [1.0] * len(self.loss_names())
        return list(self.losses_weights)


load_train_fields = TrainFieldsConfig.of_config
