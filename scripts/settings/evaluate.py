"""Typed settings of ``evaluate`` and ``cross-validate``; rules as in `scripts.settings.section`."""

from __future__ import annotations

from typing import ClassVar

from scripts.settings.folds import FOLDS
from scripts.settings.section import Section, setting
from scripts.settings.values import Flag, Integer

__all__ = ["EvaluateConfig", "load_evaluate"]


class EvaluateConfig(Section):
    """The whole ``evaluate:`` block."""

    key_path: ClassVar[str] = "evaluate"

    folds: Integer = setting(
        FOLDS, "Folds of the cross-validation of a cohort, see docs/training.md#folds.", ge=2
    )
    seed: Integer = setting(0, "Seed that assigns subjects to parts.", ge=0)
    allow_training_subjects: Flag = setting(
        False,
        "Also evaluate subjects that the model was trained on.",
    )


load_evaluate = EvaluateConfig.of_config
