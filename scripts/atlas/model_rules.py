"""Checks of a model's description before a job uses it.

A model of another group comes with a description in its checkpoint: settings, grid, box,
covariates. All of it is data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from scripts.runtime.typed_data import Part, validated
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["require_usable"]

_MOST_VOXELS = 1 << 32
_Sizes = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)]
_Features = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
_Places = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=3)]


class _Grid(Part):
    shape: _Sizes
    affine: list[list[float]]
    sform_code: int = Field(ge=0, le=10)
    qform_code: int = Field(ge=0, le=10)

    @model_validator(mode="after")
    def _possible(self) -> _Grid:
        if len(self.affine) != 4 or any(len(row) != 4 for row in self.affine):
            raise ValueError("the affine isn't 4 x 4")
        if math.prod(self.shape) > _MOST_VOXELS:
            raise ValueError(f"a grid of {self.shape} has more voxels than any image")
        return self


class _Crop(Part):
    start: _Places
    stop: _Places


class _Covariate(Part):
    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    low: float = 0.0
    high: float = 0.0
    categories: list[str] = Field(default_factory=list)
    shares: list[float] = Field(default_factory=list)


class _Initial(Part):
    name: str
    sha256: str
    inputs: Literal["images", "pair", "copies", "forces", "costs"]
    enc_features: _Features
    dec_features: _Features
    field_resolution: Literal[1, 2, 4]
    passes: Annotated[list[Literal[1, 2, 4, 8]], Field(min_length=1, max_length=8)]


class _Described(Part):
    cohort: str
    trained_on: list[str] = Field(default_factory=list)
    grid: _Grid
    crop: _Crop
    normalisation: Literal["waytotal", "streamline_density", "max", "none"]
    tracts: list[str]
    settings: dict[str, Any]
    covariates: list[_Covariate] | None = None
    transforms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    not_carried: list[str] = Field(default_factory=list)
    initial: _Initial | None = None
    parts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    loss: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _box_in_grid(self) -> _Described:
        shape, start, stop = self.grid.shape, self.crop.start, self.crop.stop
        same = len(shape) == len(start) == len(stop)
        if not same or any(not a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
            raise ValueError(f"crop from {start} to {stop} is not a box in a grid of {shape}")
        return self


def require_usable(description: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Check that a model's description can be used, before anything is built from it.

    Args:
        description: from the checkpoint.
        weights: the state dict that contains it.

    Raises:
        ValueError: the first violation, with its place and reason.
        TypeError: a part isn't made of numbers.
    """
    described = validated(_Described, dict(description))
    settings = LearnedAtlasConfig.load(described.settings)
    template = weights["template"]
    if not isinstance(template, torch.Tensor) or template.ndim != 2 + len(described.grid.shape):
        raise ValueError(f"the template isn't one of {len(described.grid.shape)} dimensions")
    box = [
        stop - start for start, stop in zip(described.crop.start, described.crop.stop, strict=True)
    ]
    expected = [settings.model.n_templates, settings.model.channels, *box]
    if list(template.shape) != expected:
        raise ValueError(f"the template has shape {list(template.shape)}, its settings {expected}")
    # Layers are built before weights are loaded: sizes without any weight might exceed the memory.
    sizes = {n for one in weights.values() if isinstance(one, torch.Tensor) for n in one.shape}
    initial = {} if described.initial is None else described.initial.model_dump()
    made = {**settings.model.model_dump(), **initial, **described.parts.get("unet", {})}
    features = [*made["enc_features"], *made["dec_features"]]
    beyond = [n for n in features if n not in sizes]
    if beyond or len(features) > len(weights):
        raise ValueError(f"its settings claim layers of {beyond[:3]} channels, it has none")
