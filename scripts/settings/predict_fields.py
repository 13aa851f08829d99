"""Typed settings of the ``predict_fields:`` block; torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from scripts.settings.image_pairs import Paths, check_distinct, image_name
from scripts.settings.pair_selection import DEVICE, PairSelection
from scripts.settings.section import setting
from scripts.settings.values import FilePath, Flag, Integer, Number, Text

__all__ = ["PredictFieldsConfig", "load_predict_fields"]


class PredictFieldsConfig(PairSelection):
    """The whole ``predict_fields:`` block."""

    key_path: ClassVar[str] = "predict_fields"
    less_memory: ClassVar[str] = (
        "use predict_fields#dtype bfloat16 or a smaller predict_fields#batch_size"
    )

    network: Literal["global", "local", "merged"] = setting(
        "merged", "Which of the trained networks predicts.", "global, local or merged"
    )
    fixed: FilePath = setting("", "In place of pairs: the fixed image, NIfTI.", "a path")
    moving: Paths = setting([], "The moving images.", "a list of paths of differently named images")
    device: Text = setting("cpu", "Where to compute.", **DEVICE)
    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32", "Autocast type of the convolutions.", "one of float16, float32, bfloat16"
    )
    batch_size: Integer = setting(1, "Pairs per step.", ge=1)
    log_share: Number | None = setting(
        None,
        "For images that are densities: log1p(x / (log_share * maximum)) replaces x.",
        gt=0,
    )
    label_tree: FilePath | None = setting(
        None,
        'JSON file {"label": "parent label"} of the labels in a store: overlap is measured at each '
        "depth of the tree.",
        "null or a path",
    )
    verify_jacobian: Flag = setting(
        False, "Images: end without publishing when a field folds (det J <= 0)."
    )

    @field_validator("moving")
    @classmethod
    def _check_moving(cls, moving: list[str]) -> list[str]:
        names = [image_name(path) for path in check_distinct(moving)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"has several images called {', '.join(twice)}")
        return moving

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        images = bool(self.fixed.strip()), bool(self.moving)
        if bool(self.pairs.strip()) == any(images):
            raise ValueError("needs either pairs, or fixed and moving")
        if any(images) and not all(images):
            raise ValueError(f"needs {'moving' if images[0] else 'fixed'} too")
        return self


load_predict_fields = PredictFieldsConfig.of_config
