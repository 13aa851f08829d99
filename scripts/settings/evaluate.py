"""Typed settings of ``evaluate`` and ``cross-validate``; rules as in `scripts.settings.section`."""

from __future__ import annotations

from typing import ClassVar

from scripts.settings.section import Flag, Integer, Section, setting

__all__ = ["EvaluateConfig", "load_evaluate"]


class EvaluateConfig(Section):
    """The whole ``evaluate:`` block."""

    key_path: ClassVar[str] = "evaluate"

    folds: Integer = setting(5, "Parts that cross-validation cuts the cohort into.", ge=2)
    seed: Integer = setting(0, "Seed of the cut: which subjects go into which part.", ge=0)
    allow_training_subjects: Flag = setting(
        False,
        "Evaluate subjects all the same whose maps the model was trained on.",
    )


load_evaluate = EvaluateConfig.of_config
