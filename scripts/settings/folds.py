"""Folds: how subjects are divided for measurements, the same by default in every job."""

from __future__ import annotations

from pydantic import ValidationInfo

__all__ = ["FOLDS", "check_fold"]

FOLDS = 5
"""Default number of folds: 80 % of the subjects are trained on, 20 % are measured with."""


def check_fold(fold: int | None, info: ValidationInfo) -> int | None:
    """Check that a fold is one of a block's ``folds``; None stands for no fold."""
    if fold is not None and not 0 <= fold < info.data.get("folds", fold + 1):
        raise ValueError("is not a fold")
    return fold
