"""Settings that all networks for pairs share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from scripts.settings.cohort import (
    SubjectSearch,
    check_exclude,
    check_pattern,
    check_subjects,
)
from scripts.settings.folds import FOLDS, check_fold
from scripts.settings.schedules import RateScheduleConfig
from scripts.settings.section import Section, setting
from scripts.settings.values import (
    Flag,
    Integer,
    Names,
    Number,
    Size,
    Sizes,
    Text,
    Typed,
    to_int,
    to_names,
)

__all__ = [
    "AUGMENTATIONS",
    "FoldedConfig",
    "PairImagesConfig",
    "PairOptimizerConfig",
    "check_augmentations",
]


AUGMENTATIONS = (
    "bias_field", "contrast", "noise", "smoothing", "histogram_shift", "gibbs", "dropout",
    "low_resolution",
)  # fmt: skip


def check_augmentations(names: list[str]) -> list[str]:
    """Check that the augmentations are known and distinct."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"names {name!r}, which is not an augmentation")
    if len(set(names)) < len(names):
        raise ValueError("contains an augmentation twice")
    return names


def _to_fold(value: object) -> object:
    return None if value is None else to_int(value)


class PairImagesConfig(Section):
    """Where images are, and the grid of the network."""

    learns_labels: ClassVar[bool] = False
    """Whether a network learns from the label maps, if there are any, instead of the images."""

    layout: Literal["probtrackx2", "mrtrix3", "xtract", "tractseg", "bids", "flat"] = setting(
        "probtrackx2",
        "Known layout of the dataset folder.",
        "one of probtrackx2, mrtrix3, xtract, tractseg, bids, flat",
    )
    pattern: Text | None = setting(
        None,
        "Path of an image inside the dataset folder, as in `learned_atlas#cohort#pattern`; "
        "replaces the layout. With `{run}` every run is an image, and all images of a subject are "
        "in one fold; a left and a right one, and several tracts, are summed.",
        "null or a path with {subject}, optionally {tract} and {run}",
    )
    labels: Text | None = setting(
        None,
        "Path of an image's label map (whole numbers, 0 for background, on the image's grid), such "
        "as `masks/seg_{subject}.nii.gz`. Label Dice between held-out subjects is then measured.",
        "null or a path with {subject}, optionally {run}",
    )
    subjects: Annotated[
        list[str] | str | None, BeforeValidator(to_names), Typed("names_or_list")
    ] = setting(
        None,
        "Subjects to use, as in `learned_atlas#cohort#subjects`.",
        "null, a non-empty list of distinct names, or the path of a .txt or .csv file",
    )
    exclude: Names = setting(
        [], "Names of subjects to leave out.", "a list of distinct, non-empty names"
    )
    shape: Sizes = setting(
        [32, 32, 32],
        "Voxels of the network's grid. Every image is resampled to it about its centre.",
        "a list of 2 or 3 integers, each >= 16",
    )
    spacing: Number | None = setting(
        None,
        "Voxel size of that grid in mm. Null: the smallest at which every image fits.",
        gt=0,
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) replaces x. Null for images of ordinary "
        "contrast.",
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

    _pattern = field_validator("pattern", "labels")(check_pattern)
    _subjects = field_validator("subjects")(check_subjects)
    _exclude = field_validator("exclude")(check_exclude)

    def subject_search(self) -> SubjectSearch:
        """Where to look for subjects."""
        return SubjectSearch(
            section=self.key_path,
            layout=self.layout,
            pattern=self.pattern,
            subjects=self.subjects,
            exclude=tuple(self.exclude),
        )

    def label_search(self, runs_apart: bool) -> SubjectSearch:
        """Where to look for the subjects' label maps, named like their images."""
        return SubjectSearch(
            section=self.key_path,
            pattern=self.labels,
            subjects=self.subjects,
            runs_apart=runs_apart,
            keys={"pattern": self.key("labels")},
        )


class PairOptimizerConfig(RateScheduleConfig):
    """Length and speed of the training."""

    lr: Number = setting(1e-3, "Adam's largest learning rate.", gt=0)
    epochs: Integer = setting(50, "Passes over the training subjects.", ge=1)
    pairs_per_subject: Size = setting(4, "Pairs made of each subject in an epoch.", ge=1)
    batch_size: Integer = setting(4, "Pairs per step.", ge=1)
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    gradient_clip: Number = setting(
        1.0, "Largest norm of a step's gradient; larger gradients are scaled down.",
        gt=0,
    )  # fmt: skip
    validation_pairs: Size = setting(4, "Pairs from each held-out subject in a measurement.", ge=1)
    validation_interval: Integer = setting(
        10, "Epochs between measurements; the last epoch is always measured.", ge=1
    )


class FoldedConfig(Section):
    """Top-level settings of every training over folds of subjects."""

    device: Text = setting(
        "cuda",
        "Device for the computation.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )
    folds: Integer = setting(
        FOLDS,
        "Folds; all images of a subject are in exactly one, see docs/training.md#folds.",
        ge=2,
    )
    fold: Annotated[int | None, BeforeValidator(_to_fold)] = setting(
        0,
        "The fold for measurements; the others are for training. Null: train on all subjects.",
        "null or an integer >= 0 and below folds",
    )
    min_subjects: Integer = setting(2, "Smallest number of usable subjects.", ge=1)
    resume: Flag = setting(
        True, "Continue from the checkpoint of an interrupted run, if there is one."
    )

    _fold = field_validator("fold")(check_fold)
