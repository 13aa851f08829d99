"""Reads JSON and YAML from outside, with limits on size, depth and numbers.

All JSON and YAML texts are read here. A text that is harmless to read may contain a harmful value:
a million brackets, a number of a thousand digits, an alias of itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import yaml

__all__ = ["DEEPEST", "parse_json", "parse_yaml", "require_depth"]

DEEPEST = 64
"""Levels of nested lists and mappings; ours have fewer than 10."""
_MOST = 5_000_000  # values; a data list of a million people has 4 million
_MOST_YAML = 500_000  # after aliases are followed
_DIGITS = 40  # of a whole number; seeds and counts have at most 20
_LONGEST_YAML = 1 << 22  # bytes: 4 MiB, a hundred times the longest configuration


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Non-finite numbers written as in Python (``NaN``, ``Infinity``) are accepted; a number that
    overflows (``1e400``) is refused.

    Raises:
        ValueError: it isn't JSON, is nested too deeply, or contains an impossible number.
    """
    if text.count(",") > _MOST:  # before any object is built
        raise ValueError(f"contains more than {_MOST:,} values")
    try:
        result = json.loads(text, parse_float=_number, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    require_depth(result)
    return result


def parse_yaml(text: str) -> Any:
    """Parse a YAML text of plain values.

    Raises:
        ValueError: it isn't YAML, is too long or nested too deeply, or its aliases expand to too
            many values.
    """
    if len(text) > _LONGEST_YAML:
        raise ValueError(
            f"has {len(text) / 1e6:.1f} million characters; such a text may have at most "
            f"{_LONGEST_YAML / 1e6:.1f} million"
        )
    try:
        _check_nesting(yaml.parse(text, Loader=yaml.SafeLoader))
        result = _built(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    require_depth(result, _MOST_YAML)
    return result


def require_depth(value: Any, most: int = _MOST) -> None:
    """Refuse values nested beyond `DEEPEST` levels, including values that contain themselves.

    Args:
        value: a parsed, plain value.
        most: largest number of values, each counted wherever it is referred to.

    Raises:
        ValueError: the value is refused.
    """
    level: list[Any] = [value]
    depth = count = 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} levels deep")
        below: list[Any] = []
        for one in level:
            inner: Iterable[Any] = ()
            if isinstance(one, dict):
                inner = one.values()
            elif isinstance(one, list | tuple):
                inner = one
            count += len(one) if inner else 0
            if count > most:
                raise ValueError(f"contains more than {most:,} values")
            below += [entry for entry in inner if isinstance(entry, dict | list | tuple)]
        level = below


def _built(text: str) -> Any:
    try:
        return yaml.load(text, Loader=yaml.SafeLoader)
    except ValueError as error:  # Python's limit, whose message advises to raise it
        raise ValueError("contains a number of too many digits, or an impossible date") from error


def _check_nesting(events: Iterable[yaml.Event]) -> None:
    """Refuse deep nesting before objects are built, because the builder is recursive."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} levels deep")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"contains {text[:40]}, which is too large for a floating-point number")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"contains a whole number of {len(text)} digits")
    return int(text)
