"""Lengths of a training that depend on the network that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AUTO", "lengths_rule", "with_usual_lengths"]

AUTO = "auto"
"""The value of a setting that is chosen by the network that the training starts from."""

_OF_SHIPPED = {
    "enc_features": [16, 32, 32, 32], "dec_features": [32, 32, 32, 16, 16], "field_resolution": 2,
}  # fmt: skip
"""Settings of the network that came with the bundle."""

_USUAL: dict[str, dict[str, tuple[float, float | None]]] = {
    "optimizer": {"epochs": (0, 20)},
    "refine": {
        "network_rounds": (3, 0),
        "iterations": (8, 10),
        "final_lr": (0.02, None),
        "network_epochs": (0, 30),
    },
}
"""Length of a training that starts from a network, and of one that starts from random weights."""


def lengths_rule(group: str, name: str) -> str:
    """What ``auto`` stands for, for the description of a setting."""
    started, random = ("null" if one is None else f"{one:g}" for one in _USUAL[group][name])
    return f"auto: {started} with an initial network (model.initial), else {random}."


def with_usual_lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ``learned_atlas`` block in which nothing is ``auto`` any more.

    ``model.initial`` becomes ``shipped``, or null if other features are asked for than those of
    the network that came with the bundle. The lengths follow from it.

    Args:
        values: the block as given; what isn't a mapping stays as it is.
    """
    resolved = dict(values)
    model = resolved.get("model")
    if isinstance(model, Mapping) and model.get("initial") == AUTO:
        fits = all(_same(model.get(name, one), one) for name, one in _OF_SHIPPED.items())
        model = resolved["model"] = {**model, "initial": "shipped" if fits else None}
    given = model.get("initial") if isinstance(model, Mapping) else getattr(model, "initial", None)
    which = 1 if given is None or str(given) in ("null", "None") else 0
    for group, usual in _USUAL.items():
        section = resolved.get(group)
        if isinstance(section, Mapping):
            resolved[group] = {
                name: usual[name][which] if value == AUTO and name in usual else value
                for name, value in section.items()
            }
    return resolved


def _same(given: Any, expected: Any) -> bool:
    """Whether a value is the expected one; lists may have come as text or tuples."""
    return str(given).replace("(", "[").replace(")", "]").replace(" ", "") == str(expected).replace(
        " ", ""
    )
