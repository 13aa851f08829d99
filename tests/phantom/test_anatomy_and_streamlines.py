"""Bundles, streamlines and their counts against geometry that can be worked out by hand."""

import itertools

import numpy as np
import pytest

from scripts.phantom.anatomy import ANATOMIES, Bundle
from scripts.phantom.streamlines import (
    COUNTING_STEP,
    REACH,
    WIGGLE,
    count_streamlines,
    deform,
    draw_streamlines,
)


def length_inside(streamline, shape, pieces=400):
    """Length of the longest stretch of one segment inside each voxel."""
    longest = np.zeros(shape)
    for a, b in itertools.pairwise(streamline):
        middles = a + ((np.arange(pieces) + 0.5) / pieces)[:, None] * (b - a)
        here = np.zeros(shape)
        np.add.at(
            here, tuple(np.floor(middles + 0.5).astype(int).T), np.linalg.norm(b - a) / pieces
        )
        longest = np.maximum(longest, here)
    return longest


def test_a_streamline_along_an_axis_counts_each_voxel_once():
    line = np.array([[[2.0, 3.0, 4.0], [7.0, 3.0, 4.0], [2.0, 3.0, 4.0]]])  # there and back
    counts = count_streamlines(line, (10, 8, 8))
    assert counts.sum() == 6
    assert (counts[2:8, 3, 4] == 1).all()


def test_streamlines_add_up_and_points_outside_are_left_out():
    inside = np.array([[1.0, 1.0, 1.0], [4.0, 1.0, 1.0]])
    leaving = np.array([[3.0, 1.0, 1.0], [12.0, 1.0, 1.0]])
    counts = count_streamlines(np.stack([inside, leaving]), (6, 4, 4))
    assert counts[:, 1, 1].tolist() == [0, 1, 1, 2, 2, 1]
    assert counts.sum() == 7


def test_a_bundle_wholly_outside_counts_nothing():
    assert count_streamlines(np.full((3, 4, 3), -9.0), (5, 5, 5)).sum() == 0


def test_every_voxel_that_is_really_crossed_counts_and_no_other():
    rng = np.random.default_rng(3)
    points = np.cumsum(rng.normal(0, 0.8, (12, 30, 3)), axis=1) + 16
    for streamline in points:
        counts = count_streamlines(streamline[None], (32, 32, 32))
        inside = length_inside(streamline, counts.shape)
        assert (counts[inside > COUNTING_STEP + 0.02] == 1).all()
        assert (counts[inside == 0] == 0).mean() > 0.9999  # points on a face belong to either side
        assert counts.max() == 1


def test_deform_adds_the_interpolated_displacement():
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (6, 7, 8)], indexing="ij"))
    displacement = np.stack([0.5 * grid[0], np.full_like(grid[0], -1), 0.1 * grid[1]]).astype("f4")
    points = np.array([[[1.5, 2.25, 3.0], [0.0, 6.0, 7.0]]])
    expected = points + np.array([[[0.75, -1, 0.225], [0, -1, 0.6]]])
    np.testing.assert_allclose(deform(points, displacement), expected, atol=1e-6)


def test_a_stem_keeps_to_its_reach_and_fans_widen_the_ends():
    straight = Bundle("x", ((0, -40, 0), (0, 0, 0), (0, 40, 0)), ((12, 0, 0), (0, 0, 0)), stem=2.0)
    lines = draw_streamlines(straight, 500, 1.0, np.random.default_rng(0))
    middle, fanned, plain = lines[:, lines.shape[1] // 2], lines[:, 0], lines[:, -1]
    far = np.hypot(middle[:, 0], middle[:, 2])
    assert far.max() < REACH * (2.0 + 4 * WIGGLE)
    assert 1.5 < middle[:, 0].std() < 2.2
    assert fanned[:, 0].std() > 2.5 * plain[:, 0].std()
    assert fanned[:, 2].std() < 1.3 * plain[:, 2].std()
    np.testing.assert_allclose(lines[:, :, 1].mean(0), np.linspace(-40, 40, lines.shape[1]))


def test_curves_pass_their_knots_with_equal_steps():
    for bundle in ANATOMIES[0]:
        curve = bundle.curve(1.0)
        steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
        assert steps.max() < 1.01
        assert steps.std() < 0.01
        for knot in bundle.knots:
            assert np.linalg.norm(curve - np.array(knot), axis=1).min() < 0.75


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_paired_bundles_mirror_each_other(anatomy):
    bundles = {bundle.name: bundle for bundle in anatomy}
    lefts = [name for name in bundles if name.endswith("_l")]
    assert lefts
    for name in lefts:
        left, right = bundles[name], bundles[name[:-1] + "r"]
        assert max(x for x, _, _ in left.knots) < 0
        np.testing.assert_array_equal(np.array(left.knots) * [-1, 1, 1], right.knots)
        np.testing.assert_array_equal(np.array(left.fan) * [-1, 1, 1], right.fan)
