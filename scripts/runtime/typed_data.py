"""Checks plain data from outside against types: kinds, ranges, and a message of one line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Part", "validated"]


class Part(BaseModel):
    """A mapping with typed values. Additional keys are allowed and ignored.

    Types are strict (``"3"`` and ``true`` aren't numbers), and numbers must be finite.

    Example:
        >>> class Grid(Part):
        ...     shape: list[int]
        >>> validated(Grid, {"shape": [4, 5], "note": "x"}).shape
        [4, 5]
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Part)


def validated(kind: type[Kind], value: Any) -> Kind:
    """Convert data to an object of a type.

    Args:
        kind: the type.
        value: as parsed from JSON.

    Raises:
        ValueError: the first violation, with its place, the value, and the rule.
    """
    if not isinstance(value, dict):
        raise ValueError("is not a mapping")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def _first(error: ValidationError) -> str:
    violation = error.errors(include_url=False)[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in violation["loc"]
    ).lstrip(".")
    if violation["type"] == "missing":
        return f"has no {where}"
    value = repr(violation["input"])
    if len(value) > 80:
        value = f"{value[:70]}..."
    cause = violation.get("ctx", {}).get("error")
    rule = str(cause) if cause is not None else violation["msg"][:200]
    return f"{where} = {value}: {rule}" if where else rule
