"""Vectors of streamlines: distances in mm, no direction, nothing degenerate."""

import numpy as np
import pytest

from scripts.tractograms import Streamlines
from scripts.transport.features import fibre_features


def features(lines, n_points=20, end_weight=1.0):
    return fibre_features(Streamlines.of(lines), n_points, end_weight)


def wiggly(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 40, count)
    return [rng.normal(0, 5, (n, 3)).cumsum(0).astype(np.float32) for n in sizes]


@pytest.mark.parametrize("end_weight", [1.0, 2.0])
def test_distance_is_root_mean_square_in_mm_with_heavier_ends(end_weight):
    line = np.linspace((0, 0, 0), (50, 0, 0), 11)
    one, other = features([line, line + np.array([0, 3, 4])], 20, end_weight).vectors
    expected = 5 * np.sqrt((18 + 2 * end_weight**2) / 20)
    assert np.linalg.norm(one - other) == pytest.approx(expected, rel=1e-5)


def test_points_are_evenly_spaced_whatever_the_sampling():
    corner = np.array([[0.0, 0, 0], [3, 0, 0], [3, 1, 0]])
    more = np.array([[0.0, 0, 0], [0.1, 0, 0], [2, 0, 0], [3, 0, 0], [3, 0.7, 0], [3, 1, 0]])
    a, b = features([corner, more], 5).vectors
    np.testing.assert_allclose(a, b, atol=1e-6)
    expected = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [3, 1, 0]]) / np.sqrt(5)
    np.testing.assert_allclose(a.reshape(5, 3), expected, atol=1e-6)


def test_reversing_changes_no_bit():
    lines = wiggly(300)
    # Closed curves, and curves that differ from their mirror image only inside.
    loop = np.array([[0.0, 0, 0], [1, 2, 0], [4, 4, 0], [0, 0, 0]], np.float32)
    palindrome = np.array([[0.0, 0, 0], [1, 2, 0], [0, 0, 0]], np.float32)
    lines += [loop, palindrome]
    turned = [line[::-1] if i % 3 else line for i, line in enumerate(lines)]
    assert np.array_equal(features(lines).vectors, features(turned).vectors)
    assert np.array_equal(features([loop]).vectors, features([loop[::-1]]).vectors)


def test_more_streamlines_than_are_worked_on_at_once():
    lines = wiggly(60) * 100
    result = features(lines, 6)
    once = features(lines[:60], 6)
    np.testing.assert_allclose(result.vectors, np.tile(once.vectors, (100, 1)), atol=1e-4)
    assert np.array_equal(result.kept, np.arange(6000))


def test_degenerate_streamlines_are_left_out_and_counted():
    good = np.array([[0.0, 0, 0], [1, 0, 0]])
    lines = [
        good,
        np.zeros((0, 3)),
        np.ones((1, 3)),
        np.ones((4, 3)),
        np.array([[0.0, 0, 0], [np.nan, 0, 0], [2, 0, 0]]),
        np.array([[0.0, 0, 0], [np.inf, 0, 0]]),
        np.full((1, 3), np.nan),
        good + 5,
    ]
    result = features(lines)
    assert result.kept.tolist() == [0, 7]
    assert result.count == 8
    assert result.degenerate == {"not_finite": 3, "fewer_than_two_points": 2, "no_length": 1}
    assert np.isfinite(result.vectors).all()


def test_no_streamlines_give_no_vectors():
    result = features([])
    assert result.vectors.shape == (0, 60)
    assert result.count == 0
