"""Typed settings of the jobs over stacks of sections; rules as in `scripts.settings.section`.

Needs no torch.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from scripts.settings.checks import check_given, check_relative
from scripts.settings.section import Section, setting
from scripts.settings.values import (
    FilePath,
    Flag,
    Integer,
    Number,
    Text,
    Texts,
    to_float,
    to_int,
    to_list,
)

__all__ = [
    "UNITS",
    "ApplyStackConfig",
    "RegisterStackConfig",
    "StackSettings",
    "load_apply_stack",
    "load_register_stack",
    "unit_name",
]

UNITS = {
    "nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1e3,
}  # fmt: skip
"""Units of length by their OME names, in mm."""

_SHORT = {"nm": "nanometer", "um": "micrometer", "µm": "micrometer", "micron": "micrometer",
          "mm": "millimeter", "cm": "centimeter", "m": "meter"}  # fmt: skip
_FORMATS = ("zarr", "nifti", "tiff")
_RATES = [1e-3, 1e-3, 5e-4, 1e-4]
_LOSS_OPTIONS = {"ncc": (), "mse": (), "mae": (), "ssim": ("window",)}


def unit_name(unit: str) -> str:
    """The OME name of a unit of length.

    Raises:
        ValueError: it is unknown.

    Example:
        >>> unit_name("um")
        'micrometer'
    """
    name = _SHORT.get(unit, unit)
    if name not in UNITS:
        raise ValueError("is not a known unit")
    return name


def _number_or_list(value: object) -> object:
    if isinstance(value, list | tuple):
        return [to_float(entry) for entry in value]
    return to_float(value)


def _integer_or_list(value: object) -> object:
    if isinstance(value, list | tuple):
        return [to_int(entry) for entry in value]
    return to_int(value)


def _word_or_integer(value: object) -> object:
    if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
        return value
    return to_int(value)


def _word_or_number(value: object) -> object:
    return value if value == "border" else to_float(value)


def _numbers(value: object) -> object:
    return None if value is None else [to_float(entry) for entry in to_list(value)]


def _integers(value: object) -> object:
    return None if value is None else [to_int(entry) for entry in to_list(value)]


class StackSettings(Section):
    """What both jobs need to know: where the sections are, and how they are resampled."""

    stack: FilePath = setting(
        "",
        "The sections: an OME-Zarr group (0.4, 0.5), a zarr array, a NIfTI volume, a folder of "
        "TIFF, PNG or JPEG files in natural order, or a multi-page TIFF.",
        "a path",
    )
    array: Text | None = setting(
        None,
        "Path of the array inside a zarr group. Null: the group's highest resolution.",
        "null or a relative path",
    )
    spacing: Annotated[list[float] | None, BeforeValidator(_numbers)] = setting(
        None,
        "Distance of sections, of rows and of columns. Null: the file's.",
        "null or three numbers > 0",
    )
    unit: Text | None = setting(
        None,
        "Unit of the spacing. Null: the file's; millimeter if the file has none.",
        f"null or one of {', '.join(UNITS)} (or {', '.join(_SHORT)})",
    )
    axis: Integer = setting(
        2, "Axis of a NIfTI volume along which the sections follow each other.", ge=0, le=2
    )
    pad: Flag = setting(
        False,
        "Centre sections of unequal sizes on a common canvas; the added border counts as unknown.",
    )
    interpolation: Literal["cubic", "linear", "nearest"] = setting(
        "cubic",
        "Interpolation of the resampling; use nearest for labels.",
        "cubic, linear or nearest",
    )
    fill: Annotated[str | float, BeforeValidator(_word_or_number)] = setting(
        "border",
        "Value where a section has none: border takes the median of the section's border.",
        "border or a number",
    )
    formats: Texts = setting(
        ["zarr"],
        "What to write beside the transforms; a NIfTI input always gives NIfTI as well.",
        "a non-empty list of different ones of zarr, nifti, tiff",
    )
    n_workers: Integer = setting(
        4, "Number of sections or pairs computed in parallel.", ge=1, le=256
    )
    scheduler: Literal["threads", "processes"] = setting(
        "threads",
        "How dask runs the workers; results are the same to the bit.",
        "threads or processes",
    )

    _stack = field_validator("stack")(check_given)

    @field_validator("array")
    @classmethod
    def _check_array(cls, path: str | None) -> str | None:
        if path is not None:
            check_relative(path)
        return path

    @field_validator("spacing")
    @classmethod
    def _check_spacing(cls, spacing: list[float] | None) -> list[float] | None:
        if spacing is not None and len(spacing) != 3:
            raise ValueError(f"has {len(spacing)} numbers")
        if spacing is not None and min(spacing) <= 0:
            raise ValueError("has a number that is not positive")
        return spacing

    @field_validator("unit")
    @classmethod
    def _check_unit(cls, unit: str | None) -> str | None:
        return None if unit is None else unit_name(unit)

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, formats: list[str]) -> list[str]:
        if not formats:
            raise ValueError("is empty")
        if len(set(formats)) < len(formats):
            raise ValueError("has an entry twice")
        for name in formats:
            if name not in _FORMATS:
                raise ValueError(f"names {name!r}, which is not a format")
        return formats


class RegisterStackConfig(StackSettings):
    """The whole ``register_stack:`` block."""

    key_path: ClassVar[str] = "register_stack"
    less_memory: ClassVar[str] = "use a smaller register_stack#n_workers"

    pyramid_levels: Integer = setting(4, "Resolutions, coarse to fine.", ge=1, le=12)
    pyramid_factors: Annotated[int | list[int], BeforeValidator(_integer_or_list)] = setting(
        2,
        "One number: the ratio of neighbouring levels (2 reduces by 8, 4, 2, 1). A list: the "
        "reduction of each level. Levels under 24 pixels per side are left out.",
        "an integer >= 2, or a list of falling integers >= 1, one per level",
    )
    pyramid_epochs: Annotated[int | list[int], BeforeValidator(_integer_or_list)] = setting(
        300, "Most steps of a level.", "an integer >= 1, or a list of them, one per level"
    )
    learning_rate: Annotated[float | list[float], BeforeValidator(_number_or_list)] = setting(
        _RATES,
        "Adam's rate of each level; the default is stretched to other numbers of levels.",
        "a number > 0, or a list of them, one per level",
    )
    loss: Literal["ncc", "mse", "mae", "ssim"] = setting(
        "ncc",
        "What is minimised over the overlap, of images scaled to 0..1: 1 - correlation, mean "
        "squared or absolute difference, or 1 - structural similarity.",
        "ncc, mse, mae or ssim",
    )
    loss_kwargs: dict[str, Any] = setting(
        {}, "Options of the loss: ssim has window (11).", "a mapping; window: an odd integer >= 3"
    )
    optimizer: Literal["gauss_newton", "adam"] = setting(
        "gauss_newton", "How the loss is minimised.", "gauss_newton or adam"
    )
    transformation: Literal["rigid", "similarity", "affine"] = setting(
        "rigid",
        "Rotation and translation; with one scale; or with two scales and a shear.",
        "rigid, similarity or affine",
    )
    scaling: Flag = setting(True, "Whether an affine transform scales.")
    shear: Flag = setting(True, "Whether an affine transform shears.")
    regularisation: Number = setting(
        0.5, "Weight of the squared deviations of scale from 1 and of shear from 0.", ge=0
    )
    early_stopping: Flag = setting(True, "End a level of Adam once its loss stays the same.")
    stop_window: Integer = setting(
        15, "Number of steps whose losses are compared for early stopping.", ge=2
    )
    stop_tol: Number = setting(
        1e-5, "Largest minus smallest loss of the window that counts as the same.", gt=0
    )
    init_std: Number = setting(
        1e-3, "Standard deviation of Adam's random start, active parameters only.", ge=0
    )
    seed: Integer = setting(0, "Seed of the random start.", ge=0)
    starts: Literal["search", "identity"] = setting(
        "search",
        "search tries rotations, each with the shifts of phase correlation, at the coarsest level.",
        "search or identity",
    )
    search_angle: Number = setting(
        6.0, "Largest rotation of the search, degrees; 180 for unknown orientation.", ge=0, le=180
    )
    flips: Flag = setting(False, "Let the search try mirrored sections as well.")
    max_pairs: Integer | None = setting(
        None,
        "Number of pairs to register, from the start of the stack; later sections get the "
        "transform of the last registered one. 0: copy the sections. Null: all.",
        ge=0,
    )
    neighbours: Integer = setting(
        2,
        "Number of next sections that each section is registered to; 1 is plain composition.",
        ge=1,
        le=16,
    )
    reference: Annotated[int | str, BeforeValidator(_word_or_integer)] = setting(
        "first", "Section whose frame is kept.", "first, middle or an index >= 0"
    )
    placement: FilePath = setting(
        "none",
        "What the slow part of the transforms follows: nothing, the unregistered sections "
        "(scanner), or a file of known placements (an earlier transforms.json, or QuickNII's or "
        "DeepSlice's JSON).",
        "none, scanner or a path",
    )
    placement_sigma: Number = setting(
        8.0, "Standard deviation of the smoothing that defines the slow part, in sections.", gt=0
    )
    skip: Annotated[list[int], BeforeValidator(_integers)] = setting(
        [],
        "Indices (in the order of registration) of sections that are never measured, but placed "
        "between their neighbours.",
        "a list of different integers >= 0",
    )
    order: Annotated[list[int] | None, BeforeValidator(_integers)] = setting(
        None,
        "Order of the sections: the index in the input of each. Null: the input's order.",
        "null or a permutation of 0 .. sections - 1",
    )
    crop_borders: Flag = setting(
        True, "Crop to the largest rectangle that every section fills, less the margin."
    )
    crop_safety_margin: Integer = setting(
        5, "Pixels to crop from each side of that rectangle.", ge=0
    )
    device: Text = setting(
        "cpu",
        "Where pairs are computed.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )
    progress_steps: Flag = setting(False, "Log the loss of each pair after each level.")
    resume: Flag = setting(
        True, "Resume an interrupted run of the same sections and settings, if there is one."
    )

    @field_validator("pyramid_factors", "pyramid_epochs")
    @classmethod
    def _check_whole(cls, value: int | list[int], info: Any) -> int | list[int]:
        least = 2 if info.field_name == "pyramid_factors" and isinstance(value, int) else 1
        if min([value] if isinstance(value, int) else value or [0]) < least:
            raise ValueError(f"has an entry below {least}")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _check_rates(cls, value: float | list[float]) -> float | list[float]:
        if min([value] if isinstance(value, float) else value or [0.0]) <= 0:
            raise ValueError("has a rate that is not positive")
        return value

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, value: int | str) -> int | str:
        if (isinstance(value, str) and value not in ("first", "middle")) or (
            isinstance(value, int) and value < 0
        ):
            raise ValueError("is no such section")
        return value

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty")
        return value

    @field_validator("skip")
    @classmethod
    def _check_skip(cls, skip: list[int]) -> list[int]:
        if len(set(skip)) < len(skip) or min(skip, default=0) < 0:
            raise ValueError("has an index twice, or below 0")
        return skip

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: list[int] | None) -> list[int] | None:
        if order is not None and sorted(order) != list(range(len(order))):
            raise ValueError("is not a permutation")
        return order

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in ("pyramid_factors", "pyramid_epochs", "learning_rate"):
            value = getattr(self, name)
            if name == "learning_rate" and value == _RATES:
                continue
            if isinstance(value, list) and len(value) != self.pyramid_levels:
                raise ValueError(
                    f"{name} has {len(value)} entries, but pyramid_levels is "
                    f"{self.pyramid_levels}: give one entry per level, or one number"
                )
        reductions = self.pyramid_factors
        if isinstance(reductions, list) and any(b >= a for a, b in itertools.pairwise(reductions)):
            raise ValueError("pyramid_factors must fall from coarse to fine")
        for name, value in self.loss_kwargs.items():
            if name not in _LOSS_OPTIONS[self.loss]:
                options = ", ".join(_LOSS_OPTIONS[self.loss]) or "no options"
                raise ValueError(f"loss_kwargs names {name!r}, but {self.loss} has {options}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 3 or not value % 2:
                raise ValueError(f"loss_kwargs: {name} must be an odd integer >= 3, got {value!r}")
        return self

    def reductions(self) -> list[int]:
        """The reduction of each level, coarse to fine."""
        if isinstance(self.pyramid_factors, list):
            return list(self.pyramid_factors)
        return [self.pyramid_factors**level for level in reversed(range(self.pyramid_levels))]

    def epochs(self) -> list[int]:
        """Most steps of each level."""
        if isinstance(self.pyramid_epochs, list):
            return list(self.pyramid_epochs)
        return [self.pyramid_epochs] * self.pyramid_levels

    def rates(self) -> list[float]:
        """Adam's rate of each level; the default list is stretched."""
        rates, levels = self.learning_rate, self.pyramid_levels
        if not isinstance(rates, list):
            return [rates] * levels
        if len(rates) == levels:
            return list(rates)
        last = len(rates) - 1
        return [rates[round(last * level / max(levels - 1, 1))] for level in range(levels)]


class ApplyStackConfig(StackSettings):
    """The whole ``apply_stack:`` block."""

    key_path: ClassVar[str] = "apply_stack"
    less_memory: ClassVar[str] = "use a smaller apply_stack#n_workers"

    transforms: FilePath = setting("", "The `transforms.json` of a registered stack.", "a path")

    _transforms = field_validator("transforms")(check_given)


load_register_stack = RegisterStackConfig.of_config
load_apply_stack = ApplyStackConfig.of_config
