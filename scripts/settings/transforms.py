"""Transforms' files as settings name them; rules as in `scripts.settings.section`. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, WithJsonSchema

from scripts.settings.values import Typed, to_int, to_list, to_path

__all__ = ["ONE_TRANSFORM", "TRANSFORMS", "Start", "TransformEntry", "Transforms"]

_KINDS = ("auto", "itk", "ras", "fsl", "lta")
_KEYS = ("path", "kind", "inverse", "moving", "fixed")


class TransformEntry(NamedTuple):
    """A transform's file as it was named.

    Attributes:
        path: of the file.
        inverted: whether its inverse is meant.
        kind: ``itk``, ``ras``, ``fsl`` or ``lta``; ``auto``: as the file shows.
        moving: of FLIRT's, the image of its ``-in``.
        fixed: of FLIRT's, the image of its ``-ref``.
    """

    path: str
    inverted: bool = False
    kind: str = "auto"
    moving: str | None = None
    fixed: str | None = None


def _to_entry(value: object) -> TransformEntry:
    if isinstance(value, TransformEntry):
        return value
    if isinstance(value, str):
        match = re.fullmatch(
            r"\[\s*(.+?)\s*,\s*([01])\s*\]", value
        )  # as antsApplyTransforms writes
        entry = TransformEntry(match[1], match[2] == "1") if match else TransformEntry(value)
    elif isinstance(value, Mapping):
        entry = _of_mapping(value)
    else:
        pair = to_list(value)
        if not 2 <= len(pair) <= len(TransformEntry._fields) or not isinstance(pair[0], str):
            raise ValueError(f"has an entry that is not a transform: {value!r}")
        number = to_int(int(pair[1]) if isinstance(pair[1], bool) else pair[1])
        if number not in (0, 1):
            raise ValueError(f"has an entry that is not a transform: {value!r}")
        entry = TransformEntry(pair[0], bool(number), *pair[2:])
    images = (None if one is None else to_path(one) for one in (entry.moving, entry.fixed))
    entry = TransformEntry(to_path(entry.path), entry.inverted, entry.kind, *images)
    if not entry.path.strip():
        raise ValueError(f"has an entry that is not a transform: {value!r}")
    if entry.kind not in _KINDS:
        raise ValueError(f"has an entry of kind {entry.kind!r}, which is not one of {_KINDS}")
    return entry


def _of_mapping(value: Mapping[Any, Any]) -> TransformEntry:
    unknown = [key for key in value if key not in _KEYS]
    if unknown or not isinstance(value.get("path"), str):
        what = f"an unknown key {unknown[0]!r}" if unknown else "no path"
        raise ValueError(f"has an entry with {what} (its keys are {', '.join(_KEYS)}): {value!r}")
    inverse = value.get("inverse", 0)
    if inverse not in (0, 1):
        raise ValueError(f"has an entry whose inverse is neither 0 nor 1: {value!r}")
    kind, moving, fixed = value.get("kind", "auto"), value.get("moving"), value.get("fixed")
    if any(image is not None and not isinstance(image, str) for image in (moving, fixed)):
        raise ValueError(f"has an entry whose moving or fixed is not a path: {value!r}")
    return TransformEntry(value["path"], bool(inverse), str(kind), moving, fixed)


def _to_transforms(value: object) -> object:
    """One entry, or a list of them."""
    given = [value] if isinstance(value, str | Mapping) else to_list(value)
    if (
        len(given) == 2
        and isinstance(given[0], str)
        and not isinstance(given[1], str | list | dict)
    ):
        given = [given]  # one [path, 1]: its brackets were read as those of the list
    return [_to_entry(entry) for entry in given]


def _to_start(value: object) -> object:
    return None if value is None else _to_entry(value)


# The rule describes the other forms of an entry.
_AS_TEXT = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})
_AS_TEXTS = WithJsonSchema({"type": "array", "items": {"type": "string"}})
Transforms = Annotated[
    list[TransformEntry], BeforeValidator(_to_transforms), Typed("transforms"), _AS_TEXTS
]
Start = Annotated[TransformEntry | None, BeforeValidator(_to_start), Typed("transform"), _AS_TEXT]
ONE_TRANSFORM = (
    "a path, [path, 1] for an affine's inverse, or {path: .., kind: itk, ras, fsl or lta, inverse: "
    "0 or 1, moving: .., fixed: ..}, where a matrix of flirt needs the images of its -in (moving) "
    "and -ref (fixed)"
)
TRANSFORMS = f"a list, in the order of antsApplyTransforms's -t; an entry is {ONE_TRANSFORM}"
