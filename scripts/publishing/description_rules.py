"""What ``atlas.json`` must be before a job uses it: kinds, ranges, names.

An atlas of another group comes with this file. All of it is data: a name may lead out of a
folder, a size may exceed any memory, a number may not be a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from scripts.runtime.input_files import check_fits, read_json
from scripts.runtime.inside import inside, name_reason
from scripts.runtime.typed_data import Part, validated
from scripts.settings.atlas import BASELINE_MAPS

__all__ = ["opened_description", "require_verifiable", "verifiable_jacobians"]

_MOST_VOXELS = 1 << 32
_DOUBLES = 6  # float64 arrays of the whole grid that a verification holds for each template


def _folder_name(name: str) -> str:
    reason = name_reason(name) or ("begins with '.'" if name.startswith(".") else None)
    if reason is not None:
        raise ValueError(f"{reason}, so that no folder can be called after it")
    return name


def _without_zero_byte(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a zero byte")
    return text


_Name = Annotated[str, AfterValidator(_folder_name)]
_Text = Annotated[str, AfterValidator(_without_zero_byte)]
_Shares = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=1000)]
_Sizes = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)]
_Places = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=3)]


# ---------------------------------------------------------------------------------------------
# What every job that uses an atlas reads
# ---------------------------------------------------------------------------------------------


class _NamedSubject(Part):
    subject: _Name


class _NamedCohort(Part):
    subjects: list[_NamedSubject]

    @model_validator(mode="after")
    def _once(self) -> _NamedCohort:
        names = [one.subject for one in self.subjects]
        if len(set(names)) < len(names):
            raise ValueError("names a subject twice")
        return self


class _OpenedCovariates(Part):
    at: dict[str, float | str] | None = None


class _Label(Part):
    index: int = Field(ge=-(1 << 62), le=1 << 62)
    name: str


class _Opened(Part):
    name: Literal["tract_density_atlas"]  # `runtime.ownership.NAME`, which a Literal can't name
    kind: str = "learned"
    training_space: Literal["template_native", "affine_native"]
    cohort: _NamedCohort
    mixture: dict[_Name, _Shares] | None = None
    covariates: _OpenedCovariates | None = None
    weights: str | None = None
    labels: list[_Label] | None = Field(default=None, max_length=100_000)


def opened_description(folder: Path) -> dict[str, Any]:
    """What ``atlas.json`` of a folder says, names and kinds checked.

    Raises:
        FileError: it can't be read, or lies elsewhere.
        ValueError: it isn't the description of an atlas; the message says where and why.
    """
    about = read_json(inside(folder, "atlas.json"))
    validated(_Opened, about)
    return about


# ---------------------------------------------------------------------------------------------
# What a verification reads beside
# ---------------------------------------------------------------------------------------------


class _Map(Part):
    path: _Text
    channel: int = Field(ge=0)
    divisor: float = Field(gt=0)
    sha256: str
    order: list[int] | None = None
    zeroed: list[Literal["nan", "negative"]] = Field(default_factory=list)

    @field_validator("order")
    @classmethod
    def _each_axis_once(cls, order: list[int] | None) -> list[int] | None:
        if order is not None and sorted(map(abs, order)) not in ([1, 2], [1, 2, 3]):
            raise ValueError(f"{order} names no order of two or three axes")
        return order


class _Subject(_NamedSubject):
    maps: list[_Map] = Field(min_length=1)


class _Grid(Part):
    shape: _Sizes


class _Crop(Part):
    start: _Places
    stop: _Places


class _Cohort(Part):
    grid: _Grid
    crop: _Crop
    subjects: list[_Subject] = Field(min_length=1)

    @model_validator(mode="after")
    def _box_in_grid(self) -> _Cohort:
        shape, start, stop = self.grid.shape, self.crop.start, self.crop.stop
        same = len(shape) == len(start) == len(stop)
        if not same or any(not a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
            raise ValueError(f"crop from {start} to {stop} is not a box in a grid of {shape}")
        if math.prod(shape) > _MOST_VOXELS:
            raise ValueError(f"a grid of {shape} has more voxels than any image")
        return self


class _Model(Part):
    channels: int = Field(ge=1, le=10_000)
    n_templates: int = Field(default=1, ge=1, le=1000)


class _Settings(Part):
    save_fields: bool = True
    model: _Model
    emit_baseline_maps: list[Literal[BASELINE_MAPS]]  # type: ignore[valid-type]


class _Code(Part):
    version: str
    sha256: str


class _Verifiable(Part):
    kind: Literal["learned", "averaged", "barycentre"]
    normalisation: Literal["waytotal", "streamline_density", "max", "none"]
    presence_value: float
    cov_mean_threshold_pct: float
    cohort: _Cohort
    settings: _Settings
    mixture: dict[str, _Shares] | None = None
    description_sha256: str | None = None
    code: _Code | None = None
    versions: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")], str] | None = None
    files: dict[str, str] | None = None

    @model_validator(mode="after")
    def _go_together(self) -> _Verifiable:
        channels = self.settings.model.channels
        for subject in self.cohort.subjects:
            for one in subject.maps:
                if one.channel >= channels:
                    raise ValueError(
                        f"a map of {subject.subject!r} is of channel {one.channel}, of "
                        f"{channels} channels"
                    )
        if self.mixture is not None:
            names = {one.subject for one in self.cohort.subjects}
            if self.mixture.keys() != names:
                raise ValueError("mixture has other subjects than the cohort")
            count = self.settings.model.n_templates
            if any(len(shares) != count for shares in self.mixture.values()):
                raise ValueError(f"mixture has other shares than those of {count} templates")
        return self


def require_verifiable(path: Path, about: Mapping[str, Any]) -> None:
    """Make sure that a description can be recomputed: kinds, ranges, and memory for the grid.

    Raises:
        FileError: memory doesn't hold what it claims.
        ValueError: where and why it can't.
    """
    checked = validated(_Verifiable, about)
    model = checked.settings.model
    values = math.prod(checked.cohort.grid.shape) * model.channels
    check_fits(path, 8 * _DOUBLES * values * model.n_templates)


class _Jacobians(Part):
    root: dict[str, dict[str, dict[str, float]]]


def verifiable_jacobians(jacobians: Any) -> dict[str, dict[str, dict[str, float]]]:
    """The content of ``jacobian.json``.

    Raises:
        ValueError: its content is something else.
    """
    return validated(_Jacobians, {"root": jacobians}).root
