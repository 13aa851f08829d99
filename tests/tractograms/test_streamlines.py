"""Streamlines in memory, resampled; weights."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.errors import CohortError, ConfigurationError
from scripts.tractograms import (
    Streamlines,
    open_tractogram,
    open_weights,
    resample,
    write_tractogram,
)


def test_resampled_points_lie_at_equal_distances_along_the_line():
    rng = np.random.default_rng(0)
    lines = [np.cumsum(rng.normal(size=(n, 3)), axis=0) for n in (2, 3, 17)]
    result = resample(Streamlines.of(lines), 11)
    for line, points in zip(lines, result, strict=True):
        np.testing.assert_allclose(points[[0, -1]], line[[0, -1]], atol=1e-6)
        along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
        for share, point in zip(np.linspace(0, 1, 11), points, strict=True):
            expected = [np.interp(share * along[-1], along, line[:, axis]) for axis in range(3)]
            np.testing.assert_allclose(point, expected, atol=1e-5)


def test_resampling_stands_what_has_no_length():
    lines = [np.zeros((0, 3)), np.ones((1, 3)), np.full((4, 3), 2.0), np.eye(3)]
    result = resample(Streamlines.of(lines), 5)
    assert np.isnan(result[0]).all()
    assert (result[1] == 1).all()
    assert (result[2] == 2).all()
    assert np.isfinite(result[3]).all()


def test_reversed_lines_resample_to_reversed_points():
    line = np.cumsum(np.random.default_rng(1).normal(size=(9, 3)), axis=0)
    both = resample(Streamlines.of([line, line[::-1]]), 6)
    np.testing.assert_allclose(both[0], both[1][::-1], atol=1e-5)


def test_taking_and_joining():
    lines = [np.full((n, 3), n, dtype=float) for n in (1, 2, 3, 4)]
    every = Streamlines.of(lines, {"n": np.arange(4)[:, None]})
    some = every.take(np.array([3, 0]))
    assert some.lengths.tolist() == [4, 1]
    assert some.points[:, 0].tolist() == [4, 4, 4, 4, 1]
    assert some.data["n"].ravel().tolist() == [3, 0]
    assert every.take(np.array([True, False, True, False])).lengths.tolist() == [1, 3]
    again = Streamlines.join([every.take(np.arange(2)), every.take(np.arange(2, 4))])
    np.testing.assert_array_equal(again.points, every.points)
    np.testing.assert_array_equal(again.offsets, every.offsets)


@pytest.fixture
def tractogram(tmp_path):
    lines = Streamlines.of([np.zeros((2, 3))] * 3, {"sift": np.array([[1.0], [2], [3]])})
    write_tractogram(tmp_path / "three.trk", lines)
    return open_tractogram(tmp_path / "three.trk")


@pytest.mark.parametrize(
    ("name", "text"),
    [("w.txt", "# command history\n1 2 3\n"), ("w.csv", "1,2,3"), ("w.txt", "1\n2\n3\n")],
)
def test_weights_of_text_files(tractogram, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    weights = open_weights(str(tmp_path / name), tractogram)
    assert weights.of(tractogram.read(), 0).tolist() == [1, 2, 3]


def test_weights_of_numpy_files_and_of_the_tractogram(tractogram, tmp_path):
    np.save(tmp_path / "w.npy", np.array([[1.0], [2], [3]]))
    for source in (str(tmp_path / "w.npy"), "sift"):
        weights = open_weights(source, tractogram)
        assert weights.of(tractogram.read(), 0).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2", "fewer than the streamlines"),
        ("1 2 3 4", "4 weights for 3 streamlines"),
        ("1 nan 3", "weight nan for streamline 1"),
        ("1 2 -3", "weight -3 for streamline 2"),
        ("1 two 3", "can't be read as weights"),
    ],
)
def test_weights_that_dont_fit_are_refused(tractogram, tmp_path, text, reason):
    (tmp_path / "w.txt").write_text(text)
    with pytest.raises(CohortError, match=reason):
        weights = open_weights(str(tmp_path / "w.txt"), tractogram)
        weights.of(tractogram.read(), 0)
        weights.check_all_used(3)


def test_weights_that_are_nothing_are_refused(tractogram):
    with pytest.raises(ConfigurationError, match="it has sift"):
        open_weights("other", tractogram)
