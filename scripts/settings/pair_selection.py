"""Which pairs of a store a job uses; torch-free."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, field_validator

from scripts.settings.section import Section, setting
from scripts.settings.values import FilePath, Integer, Typed, to_int, to_list, to_path

__all__ = ["DEVICE", "INDEXES_RULE", "Indexes", "PairSelection", "check_indexes", "to_optional_int"]


def to_optional_int(value: object) -> object:
    return None if value is None else to_int(value)


def _to_indexes(value: object) -> object:
    """Null, a path, or a list of whole numbers."""
    if value is None:
        return None
    if isinstance(value, str):
        return to_path(value)
    return [to_int(entry) for entry in to_list(value)]


def check_indexes(indexes: list[int] | str | None) -> list[int] | str | None:
    """Refuse an empty list, a negative number, and a file that is no ``.npy``."""
    if isinstance(indexes, str):
        if not indexes.lower().endswith(".npy"):
            raise ValueError("is no .npy file")
    elif indexes is not None:
        if not indexes:
            raise ValueError("is empty")
        if min(indexes) < 0:
            raise ValueError("has a negative number")
    return indexes


Indexes = Annotated[list[int] | str | None, BeforeValidator(_to_indexes), Typed("indexes")]
INDEXES_RULE = "null, a non-empty list of integers >= 0, or the path of a .npy file"
DEVICE = {"rule": "cpu, cuda or cuda:N", "pattern": r"^(?:cpu|cuda(?::[0-9]+)?)$"}


class PairSelection(Section):
    """A store of pairs, and which of them are used."""

    pairs: FilePath = setting("", "The store of pairs, HDF5.", "a path")
    reference: FilePath | None = setting(
        None,
        "Volume of reference sections for a store without `ref`: .npz, .npy or NIfTI. Null: the "
        "store's `ref` or `reference`.",
        "null or a path",
    )
    reference_axis: Integer = setting(
        0, "Axis along which its sections follow each other.", ge=0, le=2
    )
    reference_step: Integer = setting(
        25, "Distance between its sections, micrometres: a pair's is `p // reference_step`.", ge=1
    )
    indexes: Indexes = setting(
        None, "Which pairs of the store are used, counted from 0. Null: all.", INDEXES_RULE
    )

    _indexes = field_validator("indexes")(check_indexes)
