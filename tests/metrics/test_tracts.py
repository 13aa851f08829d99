"""Weighted numbers against plain NumPy on repeated values."""

import numpy as np
import pytest

from scripts.metrics.tracts import covered_share, weighted_statistics


def test_whole_weights_are_repetitions():
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=200), rng.integers(0, 6, 200)
    repeated = np.repeat(values, counts)
    result = weighted_statistics(values, counts.astype(float), (5, 95))
    assert result["mean"] == pytest.approx(repeated.mean())
    assert result["sd"] == pytest.approx(repeated.std())
    for name, per_cent in (("median", 50), ("p5", 5), ("p95", 95)):
        expected = np.percentile(repeated, per_cent, method="inverted_cdf")
        assert result[name] == pytest.approx(expected)


def test_scale_of_the_weights_does_not_matter_and_gaps_do_not_count():
    values = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    weights = np.array([1.0, 9.0, 2.0, 9.0, 1.0])
    one, other = (weighted_statistics(values, weights * k, (25,)) for k in (1, 1e-6))
    assert one == pytest.approx(other)
    assert one["mean"] == 3


def test_nothing_to_weigh_is_none_everywhere():
    assert set(weighted_statistics(np.zeros(3), np.zeros(3), (5,)).values()) == {None}
    assert covered_share(np.ones(3, bool), np.zeros(3)) is None


def test_the_extreme_percentiles_are_the_extreme_values():
    result = weighted_statistics(np.array([3.0, 1.0, 2.0]), np.full(3, 0.1), (0, 100))
    assert (result["p0"], result["p100"]) == (1, 3)
