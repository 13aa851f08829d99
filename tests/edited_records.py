"""Edits of a description, for tables of nonsense that jobs must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Edit = Callable[[dict[str, Any]], Any]


def at(*path: Any, value: Any) -> Edit:
    """An edit that puts a value at a place."""

    def edit(record: dict[str, Any]) -> None:
        *above, last = path
        place: Any = record
        for key in above:
            place = place[key]
        place[last] = value

    return edit
