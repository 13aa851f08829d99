"""Settings of the atlas's training: the loss, the optimizer, and the refinement after it."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import field_validator, model_validator

from scripts.settings.schedules import RateScheduleConfig
from scripts.settings.section import Section, setting
from scripts.settings.usual_training import lengths_rule
from scripts.settings.values import Integer, Number, Size, Sizes

__all__ = [
    "LearnedAtlasLossConfig",
    "LearnedAtlasOptimizerConfig",
    "LearnedAtlasRefineConfig",
]


class LearnedAtlasLossConfig(Section):
    """Weights and scales of the training loss."""

    key_path: ClassVar[str] = "learned_atlas.loss"

    similarity_weight: Number = setting(
        1.0, "Weight of the local correlation of log densities.", ge=0
    )
    presence_weight: Number = setting(0.5, "Weight of the presence-weighted soft Dice.", ge=0)
    smoothness_weight: Number = setting(0.5, "Weight of the field's squared gradient.", ge=0)
    log_offset: Number = setting(
        1e-3,
        "Density at which log1p(x / log_offset) turns from linear to logarithmic.",
        gt=0,
    )
    window: Size = setting(
        7, "Side of the local correlation's window in voxels.", "an odd integer >= 3", ge=3
    )
    scales: Sizes = setting(
        [1, 2, 4],
        "Levels of the image pyramid over which similarity and presence are averaged, as factors.",
        "a non-empty list of different integers >= 1",
        min_length=1,
    )
    centrality_weight: Number = setting(
        0.05, "Weight of the cohort's mean velocity during training.", ge=0
    )

    @field_validator("window")
    @classmethod
    def _check_window(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("is even")
        return window

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: list[int]) -> list[int]:
        if min(scales) < 1:
            raise ValueError("contains a factor below 1")
        if len(set(scales)) < len(scales):
            raise ValueError("contains a factor twice")
        return scales

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.similarity_weight == self.presence_weight == self.smoothness_weight == 0:
            raise ValueError(
                "similarity_weight, presence_weight and smoothness_weight are all 0; "
                "at least one of them must be > 0"
            )
        return self


class LearnedAtlasOptimizerConfig(RateScheduleConfig):
    """Length and speed of the training of template and network."""

    key_path: ClassVar[str] = "learned_atlas.optimizer"

    lr: Number = setting(1e-4, "Adam's learning rate for the network.", gt=0)
    epochs: Integer = setting(
        50,
        "Passes over the cohort; 0: template and network aren't trained; "
        + lengths_rule("optimizer", "epochs"),
        "auto or an integer >= 0",
        ge=0,
    )
    batch_size: Integer = setting(2, "Subjects per step.", ge=1)
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    template_lr_ratio: Number = setting(
        5.0,
        "The template's learning rate as a multiple of the network's.",
        gt=0,
        le=10,
    )
    warmup_epochs: Integer = setting(
        2,
        "Number of first epochs in which the template isn't trained.",
        ge=0,
    )
    gradient_clip: Number = setting(
        1.0,
        "Largest norm of a step's gradient; larger gradients are scaled down.",
        gt=0,
    )
    early_stop_patience: Integer = setting(
        0, "Epochs without progress after which training ends; 0: never.", ge=0
    )


class LearnedAtlasRefineConfig(Section):
    """Refinement of the subjects' fields and of the template, after the training of the network."""

    key_path: ClassVar[str] = "learned_atlas.refine"

    network_rounds: Integer = setting(
        0,
        "Rounds, before those of `rounds`, in which the network alone registers every subject and "
        "the template is computed again from all subjects. All rounds but the last use only the "
        "network's coarse passes. For a network that needs no training on the cohort "
        "(model.initial); " + lengths_rule("refine", "network_rounds"),
        "auto or an integer >= 0",
        ge=0,
    )
    rounds: Integer = setting(0, "Rounds of refinement over the cohort; 0: none.", ge=0)
    iterations: Integer = setting(
        10,
        "Gradient steps per subject in a round; " + lengths_rule("refine", "iterations"),
        "auto or an integer >= 1",
        ge=1,
    )
    lr: Number = setting(0.3, "Learning rate of the refined velocities.", gt=0)
    final_lr: Number | None = setting(
        None,
        "Learning rate of the last step of a round, to which it falls as a cosine; fewer steps "
        "then suffice. Null: the rate is constant; " + lengths_rule("refine", "final_lr"),
        "auto, null or a number >= 0",
        ge=0,
    )
    network_epochs: Integer = setting(
        0,
        "Epochs in which only the network is trained further, with the template of the rounds, so "
        "that new subjects are registered better; 0: none; "
        + lengths_rule("refine", "network_epochs"),
        "auto or an integer >= 0",
        ge=0,
    )
    network_lr: Number = setting(
        1.5e-3,
        "Adam's highest learning rate in these epochs. With the template fixed, it can be higher "
        "than optimizer.lr.",
        gt=0,
    )
    new_subject_iterations: Integer = setting(
        0,
        "Gradient steps that refine the field of a new subject at inference; 0: none.",
        ge=0,
    )
