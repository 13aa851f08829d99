"""Types of single settings: numbers, flags, texts and lists, as YAML or a command line gives them.

Such a type is the annotation of a field of a `scripts.settings.section.Section`.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = [
    "FilePath",
    "Flag",
    "Integer",
    "Integers",
    "Names",
    "Number",
    "Size",
    "Sizes",
    "Text",
    "Texts",
    "Typed",
    "Workers",
    "to_bool",
    "to_float",
    "to_int",
    "to_list",
    "to_name",
    "to_names",
    "to_path",
    "to_size",
    "to_some_names",
    "to_text",
    "to_workers",
]

_LARGEST = 3.4028234e38  # of float32
_LARGEST_INT = (1 << 63) - 1
_LARGEST_SIZE = 1 << 16
_MOST_WORKERS = 512


def to_float(value: object) -> float:
    """A finite float; numeric text counts (YAML 1.1 reads ``1e-4`` as text), booleans don't."""
    if isinstance(value, str):
        if "_" in value:  # Python accepts 1_000, other languages don't
            raise ValueError("is not a number")
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    if abs(number) > _LARGEST:
        raise ValueError("exceeds the range of float32, which is used for the computation")
    return number


def to_int(value: object) -> int:
    """An int; integral text counts, booleans and floats don't."""
    if isinstance(value, str):
        if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value) is None:
            raise ValueError("is not an integer")
        return int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError("is not an integer")
    number = int(value)
    if not -_LARGEST_INT - 1 <= number <= _LARGEST_INT:
        raise ValueError("is beyond 64 bits, in which whole numbers are kept")
    return number


def to_size(value: object) -> int:
    """A number of parts: channels, points, the side of a window."""
    size = to_int(value)
    if size > _LARGEST_SIZE:
        raise ValueError(f"is more than {_LARGEST_SIZE:,}, beyond any machine")
    return size


def to_workers(value: object) -> int:
    """A number of processes."""
    workers = to_int(value)
    if workers > _MOST_WORKERS:
        raise ValueError(f"is more than {_MOST_WORKERS} processes, beyond any machine")
    return workers


def to_bool(value: object) -> bool:
    """A bool; ``true`` and ``false`` as text count, since command-line overrides are text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError("is neither true nor false")


def to_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def to_path(value: object) -> str:
    """A path; ``~`` stands for the home folder, which shells don't put in after ``=``."""
    return os.path.expanduser(to_text(value))  # noqa: PTH111 (a trailing / and // stay)


def to_list(value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError("is not a list")
    return list(value)


def to_names(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return [to_name(value)]
    names = to_list(value)
    return [to_name(name) for name in names]


def to_name(value: object) -> str:
    """A name; a number counts as its digits, since YAML takes 100310 for one."""
    if isinstance(value, bool) or not isinstance(value, str | Integral):
        raise ValueError(f"has an entry that is not text: {value!r}")
    return str(value)


def to_some_names(value: object) -> object:
    """Names in a list. A text is refused, since it may be a list without its brackets."""
    if value is None or isinstance(value, str):
        raise ValueError("is not a list")
    return to_names(value)


Number = Annotated[float, BeforeValidator(to_float)]
Integer = Annotated[int, BeforeValidator(to_int)]
Size = Annotated[int, BeforeValidator(to_size)]
Workers = Annotated[int, BeforeValidator(to_workers)]
Flag = Annotated[bool, BeforeValidator(to_bool)]


@dataclass(frozen=True)
class Typed:
    """Marks a setting that holds text, so that a command line takes it as it was typed.

    Attributes:
        kind: ``text``, ``path``, ``names``, ``names_or_list``, ``paths``, ``paths_by_name``,
            ``indexes``, ``transform`` or ``transforms``.
    """

    kind: str


Text = Annotated[str, BeforeValidator(to_text), Typed("text")]
FilePath = Annotated[str, BeforeValidator(to_path), Typed("path")]
Integers = Annotated[list[Integer], BeforeValidator(to_list)]
Sizes = Annotated[list[Size], BeforeValidator(to_list)]
Texts = Annotated[list[Text], BeforeValidator(to_list)]
Names = Annotated[list[Text], BeforeValidator(to_some_names), Typed("names")]
