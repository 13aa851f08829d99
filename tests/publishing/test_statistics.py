"""The five maps: the contract's example, numpy's two-pass numbers, merging."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scripts.publishing.statistics import DensityStatistics

MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")
cohorts = arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.just(1), st.integers(1, 3), st.integers(1, 3)),
    elements=st.one_of(st.just(0.0), st.floats(0, 1e3, width=32)),
)


def gathered(
    densities: np.ndarray, weights: list[float] | None = None, presence: float = 0.1
) -> DensityStatistics:
    statistics = DensityStatistics(densities.shape[1:], presence)
    for i, density in enumerate(densities):
        statistics.add(density, 1.0 if weights is None else weights[i])
    return statistics


def test_the_contracts_example_by_hand() -> None:
    x = np.array([0, 0.2, 0.1, 0.3]).reshape(4, 1, 1, 1, 1)
    maps = gathered(x).maps()
    result = {name: values.item() for name, values in maps.items()}
    expected = {
        "mean": 0.15, "std": 0.111803, "std_error": 0.0559017, "cov": 0.745356,
        "prob_threshold": 50,
    }  # fmt: skip
    assert result == pytest.approx(expected, rel=1e-5)
    assert all(values.dtype == np.float32 for values in maps.values())


@settings(max_examples=60, deadline=None)
@given(cohorts)
def test_one_pass_gives_what_two_passes_give(x: np.ndarray) -> None:
    maps = gathered(x).maps()
    mean, std = x.mean(0), x.std(0)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(maps["mean"], mean, **close)
    np.testing.assert_allclose(maps["std"], std, **close)
    np.testing.assert_allclose(maps["std_error"], std / np.sqrt(len(x)), **close)
    np.testing.assert_allclose(maps["prob_threshold"], 100 * (x > 0.1).mean(0), **close)
    firm = maps["cov"] > 0
    np.testing.assert_allclose(maps["cov"][firm], (std / np.maximum(mean, 1e-300))[firm], rtol=1e-4)
    assert all(np.isfinite(values).all() for values in maps.values())


@settings(max_examples=60, deadline=None)
@given(cohorts, st.data())
def test_shards_merged_are_the_whole(x: np.ndarray, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(x)))
    merged = gathered(x[:cut]) if cut else DensityStatistics(x.shape[1:], 0.1)
    if cut < len(x):
        merged.merge(gathered(x[cut:]))
    whole = gathered(x)
    assert merged.subjects == whole.subjects
    np.testing.assert_allclose(merged.sample_mean, whole.sample_mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(merged.present, whole.present)


def test_merging_with_nothing_changes_nothing() -> None:
    x = np.random.default_rng(0).random((3, 1, 2, 2))
    statistics, empty = gathered(x), DensityStatistics((1, 2, 2), 0.1)
    before = statistics.maps()
    statistics.merge(empty)
    empty.merge(statistics)
    for name in MAPS:
        np.testing.assert_array_equal(statistics.maps()[name], before[name])
        np.testing.assert_allclose(empty.maps()[name], before[name])


def test_a_large_common_offset_does_not_swamp_the_spread() -> None:
    """The naive sum of squares loses all of it: 1e8 squared has no room for 1."""
    x = 1e8 + np.array([-1.0, 0, 1]).reshape(3, 1, 1)
    assert gathered(x).maps()["std"].item() == pytest.approx(np.sqrt(2 / 3), rel=1e-6)


def test_one_subject_has_no_spread() -> None:
    x = np.array([[0.0, 0.05, 0.1, 0.2]])[:, None]
    maps = gathered(x).maps()
    for name in ("std", "std_error", "cov"):
        assert (maps[name] == 0).all()
    np.testing.assert_allclose(maps["mean"], x[0])
    np.testing.assert_array_equal(maps["prob_threshold"], [[0, 0, 0, 100]])  # strictly above


def test_empty_voxels_are_zero_and_never_nan() -> None:
    x = np.zeros((3, 1, 2, 2))
    x[:, 0, 0, 0] = [1, 2, 3]
    for values in gathered(x).maps().values():
        assert (values[0].ravel()[1:] == 0).all()
    for values in gathered(np.zeros((3, 1, 2, 2))).maps().values():
        assert (values == 0).all()


def test_cov_is_zero_where_the_mean_is_at_most_a_share_of_its_maximum() -> None:
    means = np.array([1.0, 0.02, 0.01, 0.001])
    x = np.stack([0.5 * means, 1.5 * means])[:, None]
    np.testing.assert_allclose(gathered(x).maps()["cov"], [[0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(
        gathered(x).maps(cov_mean_threshold_pct=0)["cov"], [[0.5, 0.5, 0.5, 0.5]]
    )


def test_the_learned_template_is_the_mean_but_spread_stays_about_the_sample_mean() -> None:
    x = np.random.default_rng(0).random((4, 1, 3, 3))
    template = np.full((1, 3, 3), 9.0)
    maps, plain = gathered(x).maps(template), gathered(x).maps()
    assert (maps["mean"] == 9).all()
    for name in MAPS[1:]:
        np.testing.assert_array_equal(maps[name], plain[name])


@settings(max_examples=30, deadline=None)
@given(cohorts, st.data())
def test_weights_count_as_shares_of_subjects(x: np.ndarray, data: st.DataObject) -> None:
    size = len(x)
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size))
    statistics, share = gathered(x, weights), np.array(weights) / sum(weights)
    mean = np.tensordot(share, x, axes=1)
    variance = np.tensordot(share, (x - mean) ** 2, axes=1)
    np.testing.assert_allclose(statistics.sample_mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.maps()["std"], np.sqrt(variance), rtol=1e-4, atol=1e-5)
    presence = 100 * np.tensordot(share, x > 0.1, axes=1)
    np.testing.assert_allclose(statistics.maps()["prob_threshold"], presence, rtol=1e-5)


def test_no_weight_is_no_subject_and_no_subject_is_an_error() -> None:
    statistics = DensityStatistics((1, 2), 0.1)
    statistics.add(np.ones((1, 2)), weight=0.0)
    assert statistics.subjects == 0
    with pytest.raises(ValueError, match="no subject was added"):
        statistics.maps()


def test_memory_does_not_grow_with_the_number_of_subjects() -> None:
    shape = (1, 40, 40, 40)
    statistics, density = DensityStatistics(shape, 0.1), np.ones(shape, dtype=np.float32)
    statistics.add(density)
    tracemalloc.start()
    for _ in range(20):
        statistics.add(density)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * density.nbytes
    arrays_held = [v for v in vars(statistics).values() if isinstance(v, np.ndarray)]
    assert len(arrays_held) == 3
    assert sum(sys.getsizeof(a) for a in arrays_held) < 3.1 * 8 * density.size
