"""What the configs of affine and elastic networks share is word for word the same.

MONAI's command reads one file, and every part must be there to be overridden; so the files repeat
each other (docs/architecture.md), and these tests keep the two copies from drifting apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TRAINING = {
    "learned_affine", "learned_elastic", "labels", "settings::_target_", "settings::block",
    "device::key", "state::folder", "network_def::_target_", "network_def::labels",
    "loss::_target_", "loss::images", "pairs::_target_", "train::preprocessing::_target_",
    "train::preprocessing::labels", "train::step::_target_", "train::history::summary_dir",
    "train::handlers::1::block", "validate::step::_target_", "publisher::report",
    "publisher::model_file", "images::replaced::0", "images::replaced::1", "images::replaced::2",
}  # fmt: skip
"""Where the trainings differ: whatever knows an affine or an elastic network, and names."""

INFERENCE = {
    "estimate_affine", "register_elastic", "passes", "settings::_target_", "settings::block",
    "network_def::_target_", "network_def::path", "device::key",
    "preprocessing::_target_", "preprocessing::settings",
    "dataset::data::folder", "inferer::_target_", "handlers::1::_target_",
    "handlers::1::settings", "handlers::1::folder", "estimating", "registering", "run::0",
}  # fmt: skip
"""Where the jobs that ask a network differ."""


def differences(first: Any, second: Any, place: str = "") -> set[str]:
    """Paths at which two configs differ, by key; entries of a list by number."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return set() if first == second else {place}
    result = set()
    for key in {**first, **second}:
        path = f"{place}::{key}" if place else str(key)
        if key in first and key in second:
            result |= differences(first[key], second[key], path)
        else:
            result.add(path)
    return result


@pytest.mark.parametrize(
    ("affine", "elastic", "apart"),
    [
        ("train_affine", "train_elastic", TRAINING),
        ("estimate_affine", "register_elastic", INFERENCE),
    ],
)
def test_the_configs_differ_where_the_networks_do_and_nowhere_else(affine, elastic, apart):
    first, second = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8")) for name in (affine, elastic)
    )
    assert differences(first, second) == apart
    assert [*(key for key in first if key in second)] == [*(key for key in second if key in first)]


def test_a_difference_is_detected_wherever_it_is():
    first = {"a": [{"b": 1}, 2], "c": 3}
    assert differences(first, {"a": [{"b": 1}, 2], "c": 3}) == set()
    assert differences(first, {"a": [{"b": 4}, 2], "d": 3}) == {"a::0::b", "c", "d"}
    assert differences(first, {"a": [2], "c": 3}) == {"a"}
