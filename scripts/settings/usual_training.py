"""Lengths of a training that depend on the network that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AUTO", "lengths_rule", "with_usual_lengths"]

AUTO = "auto"
"""The value of a setting that is chosen by the network that the training starts from."""

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
    """The meaning of ``auto``, for the description of a setting."""
    started, random = ("null" if one is None else f"{one:g}" for one in _USUAL[group][name])
    return f"auto: {started} with an initial network (model.initial), else {random}."


def with_usual_lengths(group: str, values: Mapping[str, Any], started: bool) -> dict[str, Any]:
    """A group of settings in which no length is ``auto`` any more.

    Args:
        group: ``optimizer`` or ``refine``.
        values: its settings as given.
        started: whether the training starts from a network, not from random weights.
    """
    usual = _USUAL[group]
    return {
        name: usual[name][0 if started else 1] if value == AUTO and name in usual else value
        for name, value in values.items()
    }
