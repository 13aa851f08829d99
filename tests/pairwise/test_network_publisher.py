"""A network is written only if it is better than none."""

from __future__ import annotations

import pytest

from scripts.errors import TrainingError
from scripts.pairwise.network_publisher import require_gain


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"distance": 1.0},
        {"distance": 1.0, "distance_before": 2.0},
        {"overlap": 0.6, "overlap_before": 0.5},
        {"overlap": 0.5, "overlap_before": 0.5},
    ],
)
def test_a_network_that_helps_or_was_not_measured_passes(metrics: dict[str, float]) -> None:
    require_gain(metrics)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"distance": 2.5, "distance_before": 2.0}, "distance 2.5 mm, 2 mm without"),
        ({"overlap": 0.4, "overlap_before": 0.5}, "overlap 0.4, 0.5 without"),
        ({"distance": float("nan"), "distance_before": 2.0}, "distance nan"),
    ],
)
def test_a_network_that_is_worse_than_none_is_refused(
    metrics: dict[str, float], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        require_gain(metrics)
