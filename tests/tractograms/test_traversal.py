"""Voxels of a streamline: closed forms, exact rational arithmetic, dense sampling."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.tractograms import DensityCounter, Streamlines, visited_voxels

SHAPE = (5, 4, 6)


def visited(points, shape=SHAPE, affine=None, ends=False) -> set[tuple[int, ...]]:
    counter = DensityCounter(shape, np.eye(4) if affine is None else affine, ends)
    counter.add(Streamlines.of([np.asarray(points, dtype=float)]))
    assert set(np.unique(counter.density)) <= {0.0, 1.0}  # once per voxel, however it winds
    return set(map(tuple, np.argwhere(counter.density > 0).tolist()))


CLOSED = {
    "along an axis": ([[0, 1, 2], [4, 1, 2]], {(x, 1, 2) for x in range(5)}),
    "there and back": ([[0, 0, 0], [2, 0, 0], [0, 0, 0]], {(x, 0, 0) for x in range(3)}),
    "one point": ([[2, 1, 3]], {(2, 1, 3)}),
    "within one voxel": ([[2.2, 1, 3], [1.8, 1.3, 2.9]], {(2, 1, 3)}),
    "diagonal through corners": ([[0, 0, 0], [3, 3, 3]], {(i, i, i) for i in range(4)}),
    "diagonal through edges, downwards": (
        [[3, 0, 0], [0, 3, 0]],
        {(3 - i, i, 0) for i in range(4)},
    ),
    "just beside the corner": ([[0, 0.01, 0], [1, 1.01, 0]], {(0, 0, 0), (0, 1, 0), (1, 1, 0)}),
    "a point on a face belongs to the higher voxel": ([[0.5, 0, 0]], {(1, 0, 0)}),
    "within a face": ([[0.5, 0, 0], [0.5, 2, 0]], {(1, 0, 0), (1, 1, 0), (1, 2, 0)}),
    "from a face downwards": ([[0.5, 0, 0], [0, 0, 0]], {(1, 0, 0), (0, 0, 0)}),
    "in from outside": ([[-9, 1, 1], [1, 1, 1]], {(0, 1, 1), (1, 1, 1)}),
    "right through from outside to outside": (
        [[-50, 1, 1], [50, 1, 1]],
        {(x, 1, 1) for x in range(5)},
    ),
    "past the grid": ([[-9, -1, 1], [9, -1, 1]], set()),
    "far away": ([[1e30, 1, 1], [1, 1, 1], [1, 1e30, 1]], None),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    points, expected = CLOSED[name]
    result = visited(points)
    if expected is None:  # 30 digits are lost: only the point itself is certain
        assert (1, 1, 1) in result
    else:
        assert result == expected


def rational(points) -> set[tuple[int, ...]]:
    """By definition, exactly: boxes that hold a point, or a length of a segment."""
    exact = [[Fraction(float(value)) for value in point] for point in points]

    def box(value: Fraction) -> int:
        return (value + Fraction(1, 2)).__floor__()

    result = {tuple(map(box, point)) for point in exact}
    for a, b in pairwise(exact):
        spans = [range(box(min(x, y)) - 1, box(max(x, y)) + 2) for x, y in zip(a, b, strict=True)]
        for voxel in product(*spans):
            low, high = Fraction(0), Fraction(1)
            for v, x, y in zip(voxel, a, b, strict=True):
                below, above = v - Fraction(1, 2), v + Fraction(1, 2)
                if x == y:
                    high = high if below <= x < above else Fraction(-1)
                else:
                    crossed = sorted(((below - x) / (y - x), (above - x) / (y - x)))
                    low, high = max(low, crossed[0]), min(high, crossed[1])
            if low < high:
                result.add(voxel)
    return {v for v in result if all(0 <= c < n for c, n in zip(v, SHAPE, strict=True))}


# Quarters meet faces, edges and corners all the time; a third part meets none.
coordinates = st.integers(-8, 24).map(lambda k: k / 4) | st.floats(-2, 7, width=32)
lines = st.lists(st.tuples(*[coordinates] * 3), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lines)
def test_agrees_with_exact_arithmetic(points):
    points = [[round(value * 4096) / 4096 for value in point] for point in points]
    assert visited(points) == rational(points)


def test_contains_every_densely_sampled_voxel_and_few_others():
    rng = np.random.default_rng(1)
    affine = np.array([[-1.7, 0.3, 0, 9], [0.2, 2.1, 0.1, -7], [0, -0.2, 1.3, 4], [0, 0, 0, 1.0]])
    shape = (12, 11, 13)
    middle = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]
    missed = extra = 0
    for _ in range(40):
        points = middle + np.cumsum(rng.normal(0, 3, (8, 3)), axis=0)
        result = visited(points, shape, affine)
        share = np.linspace(0, 1, 4001)[:, None]
        dense = np.concatenate([a + share * (b - a) for a, b in pairwise(points)])
        at = np.linalg.solve(affine, np.c_[dense, np.ones(len(dense))].T)[:3].T
        sampled = {
            voxel
            for voxel in map(tuple, np.floor(at + 0.5).astype(int))
            if all(0 <= c < n for c, n in zip(voxel, shape, strict=True))
        }
        missed += len(sampled - result)
        extra += len(result - sampled)
    assert missed == 0
    assert extra <= 5  # corners cut by less than the sampling's step


def test_reversing_a_streamline_changes_nothing():
    rng = np.random.default_rng(2)
    for _ in range(50):
        points = rng.uniform(-2, 7, (6, 3))
        assert visited(points) == visited(points[::-1])


def test_every_pair_comes_once_and_streamlines_are_apart():
    lines = [np.array([[0.0, 0, 0], [4, 3, 5], [0, 0, 0]]), np.array([[4.0, 3, 5], [0, 0, 0]])]
    visits = visited_voxels(Streamlines.of(lines), SHAPE, np.eye(4))
    pairs = list(zip(visits.streamlines.tolist(), visits.voxels.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert {v for s, v in pairs if s == 0} == {v for s, v in pairs if s == 1}


def test_ends_alone():
    assert visited([[0, 0, 0], [2, 2, 2], [4, 0, 0]], ends=True) == {(0, 0, 0), (4, 0, 0)}
    assert visited([[1, 1, 1]], ends=True) == {(1, 1, 1)}
    assert visited([[1, 1, 1], [3, 3, 3], [1.1, 1, 1]], ends=True) == {(1, 1, 1)}


def test_what_lies_outside_is_counted():
    counter = DensityCounter(SHAPE, np.eye(4))
    counter.add(
        Streamlines.of(
            [
                np.array([[-3.0, 0, 0], [-2, 0, 0], [1, 0, 0]]),
                np.array([[9.0, 9, 9]]),
                np.zeros((0, 3)),
                np.array([[1.0, 1, 1]]),
            ]
        )
    )
    assert (counter.streamlines, counter.outside, counter.left, counter.missed) == (4, 3, 2, 2)


def test_the_order_and_the_blocks_dont_matter(monkeypatch):
    rng = np.random.default_rng(3)
    lines = [rng.uniform(-2, 7, (rng.integers(0, 9), 3)) for _ in range(60)]
    weights = rng.random(60)
    whole = DensityCounter(SHAPE, np.eye(4))
    whole.add(Streamlines.of(lines), weights)
    monkeypatch.setattr("scripts.tractograms.density._BLOCK", 5)
    monkeypatch.setattr("scripts.tractograms.traversal._CROSSINGS", 7)
    parts = DensityCounter(SHAPE, np.eye(4))
    order = rng.permutation(60)
    parts.add(Streamlines.of([lines[i] for i in order]), weights[order])
    np.testing.assert_allclose(parts.density, whole.density, atol=1e-12)
    assert parts.missed == whole.missed
    by_hand = np.zeros(SHAPE)
    for line, weight in zip(lines, weights, strict=True):
        for voxel in visited(line) if len(line) else ():
            by_hand[voxel] += weight
    np.testing.assert_allclose(whole.density, by_hand, atol=1e-12)


def test_colliding_table_places_lose_nothing(monkeypatch):
    monkeypatch.setattr("scripts.tractograms.traversal._MIXER", np.uint64(0))  # all in one place
    points = [[0, 0, 0], [4, 3, 5], [0, 1, 2], [4, 3, 5]]
    assert visited(points) == rational(points)
