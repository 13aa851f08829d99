"""JSON and YAML from outside: small enough, not too deep, numbers that computers have.

The one reader of both. A text that is no harm to read may hold a value that is: a million brackets,
a number of a thousand digits, an alias of itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import yaml

__all__ = ["DEEPEST", "parse_json", "parse_yaml", "require_depth"]

DEEPEST = 64
"""Levels of lists and mappings in each other; ours have fewer than 10."""
_MOST = 5_000_000  # values; a data list of a million people has 4 million
_MOST_YAML = 500_000  # once aliases are followed
_DIGITS = 40  # of a whole number; seeds and counts have 20 at most
_LONGEST_YAML = 1 << 22  # bytes: 4 MiB, a hundred times the longest configuration


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Numbers that aren't finite stand as Python writes them (``NaN``, ``Infinity``); one that says
    so in another way (``1e400``) is refused.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds a number beyond all sense.
    """
    if text.count(",") > _MOST:  # before anything is built of them
        raise ValueError(f"holds more than {_MOST:,} values")
    try:
        found = json.loads(text, parse_float=_number, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    require_depth(found)
    return found


def parse_yaml(text: str) -> Any:
    """What a YAML text of plain values says.

    Raises:
        ValueError: it is no YAML, is too long or nested too deeply, or grows beyond sense by its
            aliases.
    """
    if len(text) > _LONGEST_YAML:
        raise ValueError(
            f"has {len(text) / 1e6:.1f} million characters, more than the "
            f"{_LONGEST_YAML / 1e6:.1f} million that a text of its kind may have"
        )
    try:
        _check_nesting(yaml.parse(text, Loader=yaml.SafeLoader))
        found = _built(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    require_depth(found, _MOST_YAML)
    return found


def require_depth(value: Any, most: int = _MOST) -> None:
    """Refuse values within values beyond `DEEPEST` levels; those within themselves as well.

    Args:
        value: plain, as it was parsed.
        most: values that it may hold, each counted wherever it is referred to.

    Raises:
        ValueError: it does.
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
                raise ValueError(f"holds more than {most:,} values")
            below += [entry for entry in inner if isinstance(entry, dict | list | tuple)]
        level = below


def _built(text: str) -> Any:
    try:
        return yaml.load(text, Loader=yaml.SafeLoader)
    except ValueError as error:  # Python's own limit, whose message advises to lift it
        raise ValueError("holds a number of too many digits, or an impossible date") from error


def _check_nesting(events: Iterable[yaml.Event]) -> None:
    """Refuse deep nesting before anything is built of it: the builder is recursive."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} levels deep")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"holds {text[:40]}, which is beyond any number of a computer")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"holds a whole number of {len(text)} digits")
    return int(text)
