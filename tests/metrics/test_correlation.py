import numpy as np
import pytest

from scripts.metrics import log_density_correlation, pairwise_correlation, pearson


def sparse(seed, shape=(8, 9, 7)):
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, 2, shape) * (rng.random(shape) < 0.3)


def test_pearson_by_hand_and_undefined_without_variation():
    """Deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 * 6)."""
    assert pearson([1, 2, 3], [0, 0, 3]) == pytest.approx(3 / 12**0.5)
    assert pearson(np.float32([[1, 2], [3, 4]]), [[-1, -2], [-3, -4]]) == pytest.approx(-1)
    for other in ([5, 5, 5], [1, 2, np.nan], [1, 2, np.inf]):
        assert pearson([1, 2, 3], other) is None
    assert pearson([1], [2]) is None
    with pytest.raises(ValueError, match=r"one shape, got \[\(3,\), \(2,\)\]"):
        pearson([1, 2, 3], [1, 2])


def test_equals_pearson_of_logarithms_on_the_union():
    a, b = sparse(0), sparse(1)
    union = (a > 0) | (b > 0)
    expected = np.corrcoef(np.log1p(a[union] / 0.5), np.log1p(b[union] / 0.5))[0, 1]
    assert log_density_correlation(a, b, 0.5) == pytest.approx(expected)


def test_empty_background_does_not_count():
    a, b = sparse(0), sparse(1)
    wide = [np.pad(m, 20) for m in (a, b)]
    assert log_density_correlation(*wide, 0.5) == pytest.approx(log_density_correlation(a, b, 0.5))
    everywhere = np.ones(wide[0].shape, bool)
    assert log_density_correlation(*wide, 0.5, everywhere) > log_density_correlation(a, b, 0.5)


def test_a_given_support_is_the_only_place_looked_at():
    a, b = sparse(0), sparse(1)
    support = a > 0
    changed = np.where(support, b, 1e6)
    assert log_density_correlation(a, b, 1.0, support) == pytest.approx(
        log_density_correlation(a, changed, 1.0, support)
    )


def test_a_map_correlates_fully_with_itself_and_unit_and_offset_go_together():
    a, b = sparse(0), sparse(1)
    assert log_density_correlation(a, a, 1.0) == pytest.approx(1)
    assert log_density_correlation(a * 1e-4, b * 1e-4, 1e-4) == pytest.approx(
        log_density_correlation(a, b, 1.0)
    )


@pytest.mark.parametrize("b", [np.zeros((2, 2)), np.full((2, 2), 3.0)])
def test_a_constant_map_correlates_with_nothing(b):
    assert log_density_correlation(np.zeros((2, 2)), b, 1.0) == 0.0


def test_the_mean_over_pairs():
    maps = [sparse(i) for i in range(3)]
    pairs = [log_density_correlation(maps[i], maps[j], 0.1) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairwise_correlation(maps, 0.1) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("offset", [0.0, -1.0, float("nan")])
def test_the_offset_must_be_positive(offset):
    with pytest.raises(ValueError, match="offset"):
        log_density_correlation(np.ones(3), np.ones(3), offset)


def test_shapes_and_numbers_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        log_density_correlation(np.ones(3), np.ones(4), 1.0)
    with pytest.raises(ValueError, match="one shape"):
        log_density_correlation(np.ones(3), np.ones(3), 1.0, np.ones(4, bool))
    with pytest.raises(ValueError, match="at least 2"):
        pairwise_correlation([np.ones(3)], 1.0)
