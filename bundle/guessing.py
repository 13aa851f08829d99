"""Settings that `build` guesses from the dataset folder for people who give nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from bundle.early_values import early_check, known_path
from bundle.folders import check_folders
from bundle.overrides import apply_overrides
from scripts.cohort.first_look import first_look
from scripts.errors import shown

__all__ = ["guessed_settings"]

KEYS = {
    "layout": "learned_atlas#cohort#layout",
    "pattern": "learned_atlas#cohort#pattern",
    "normalisation": "learned_atlas#cohort#normalisation",
    "log_offset": "learned_atlas#loss#log_offset",
    "presence_value": "learned_atlas#presence_value",
    "velocity_smoothing": "learned_atlas#model#velocity_smoothing",
    "smoothness_weight": "learned_atlas#loss#smoothness_weight",
}


def guessed_settings(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for what the person left open; each is printed with its reason.

    Nothing is guessed for the demo cohort, whose settings are in the configuration.

    Args:
        config: the configuration without the overrides.
        overrides: what the person has given.

    Raises:
        TractAtlasError: a setting breaks its rule, or nothing in the folder can be a map.
    """
    if "dataset_dir" not in overrides:
        return {}
    trial = copy.deepcopy(dict(config))
    apply_overrides(trial, overrides)
    check_folders(trial, overrides)
    settings = early_check(trial)
    if settings is None:  # an expression that only MONAI can evaluate
        return {}
    given = [
        name
        for name, key in KEYS.items()
        if any(key == one or key.startswith(f"{one}#") for one in overrides)
    ]
    guesses = first_look(known_path(trial, "dataset_dir"), settings.cohort_request(), given)
    if guesses:
        print("guessed from the folder; give any of these to change it:")
    for guess in guesses:
        print(shown(f"  --{KEYS[guess.name]} {guess.value}    ({guess.reason})"))
    return {KEYS[guess.name]: guess.value for guess in guesses}
