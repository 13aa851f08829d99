"""Label maps fused in one space: closed forms, exact subtraction, whole numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from scripts.spatial import label_fusion
from scripts.spatial.label_fusion import SCALE, LabelSums, label_shares

SHAPE = (9, 8, 7)


@pytest.fixture
def some_labels():
    made = np.random.default_rng(0)
    return [made.integers(0, 5, SHAPE) * 11 for _ in range(5)]


@pytest.fixture
def some_fields():
    made = np.random.default_rng(1)
    return [made.normal(size=(3, *SHAPE)) for _ in range(5)]


def still(shape=SHAPE):
    return np.zeros((len(shape), *shape))


def by_hand(labels, field, label):
    """The presence of one label, interpolated linearly, with background outside."""
    places = np.indices(labels.shape) + field
    return map_coordinates((labels == label).astype(float), places, order=1, mode="grid-constant")


def test_the_probability_is_the_mean_of_the_interpolated_presence(some_labels, some_fields):
    sums = LabelSums(SHAPE)
    for labels, field in zip(some_labels, some_fields, strict=True):
        sums.add(label_shares(labels, field))
    assert sums.labels == [11, 22, 33, 44]
    for label in sums.labels:
        expected = np.mean(
            [by_hand(*both, label) for both in zip(some_labels, some_fields, strict=True)], axis=0
        )
        assert np.allclose(sums.probability(label), expected, atol=2e-4)


def straightforward(labels, field, label):
    """The same whole numbers, one label and one corner after another in whole volumes."""
    shape = labels.shape
    places = np.indices(shape) + field
    base = np.floor(places).astype(int)
    parts = (places - base).astype(np.float32)
    total = np.zeros(shape, dtype=np.int64)
    around = np.pad((labels == label).astype(np.int64), 2)
    for corner in itertools.product((0, 1), repeat=labels.ndim):
        weight = np.ones(shape, dtype=np.float32)
        index = []
        for axis, up in enumerate(corner):
            weight *= parts[axis] if up else 1 - parts[axis]
            index.append(np.clip(base[axis] + up, -1, shape[axis]) + 2)
        total += around[tuple(index)] * np.rint(weight * SCALE).astype(np.int64)
    return total


@pytest.mark.parametrize("slab", [1, 150, 10**6])
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8), (60,)])
def test_shares_and_sums_equal_the_straightforward_way(monkeypatch, slab, shape):
    """In slabs of any size, with labels all over the grid and fields that lead outside."""
    monkeypatch.setattr(label_fusion, "_SLAB", slab)
    made = np.random.default_rng(2)
    subjects = [
        (made.integers(-2, 30, shape) * 11, made.normal(0, 3, (len(shape), *shape)))
        for _ in range(3)
    ]
    sums = LabelSums(shape)
    for labels, field in subjects:
        sums.add(label_shares(labels, field))
    sums.add(label_shares(*subjects[0]), sign=-1)
    for label in sums.labels:
        wanted = sum(straightforward(*one, label) for one in subjects[1:])
        result = np.zeros(shape, dtype=np.int64)
        result.flat[sums.shares[label].index] = sums.shares[label].weights
        assert np.array_equal(result, wanted)
        assert (np.diff(sums.shares[label].index) > 0).all()


def test_memory_is_that_of_the_voxels_not_of_the_labels(some_fields):
    """As many weights, whether two labels or three hundred are spread over the grid."""

    def kept(labels):
        shares = label_shares(labels, some_fields[0] * 0.01)
        return sum(one.index.nbytes + one.weights.nbytes for one in shares.values())

    made = np.random.default_rng(3)
    few, many = (made.integers(1, n, SHAPE) for n in (3, 300))
    assert kept(many) <= 8 * 8 * many.size  # 8 corners at most, 8 bytes each
    assert kept(many) < 8 * kept(few)


def test_the_majority_is_the_most_frequent_label_and_of_equal_ones_the_smallest():
    maps = np.array([[0, 5, 5, 9, 9, 5], [0, 5, 9, 9, 0, 9], [0, 5, 9, 0, 0, 0]])
    sums = LabelSums((6,))
    for labels in maps:
        sums.add(label_shares(labels, still((6,))))
    assert sums.majority().tolist() == [0, 5, 9, 9, 0, 0]


def test_the_order_of_the_subjects_does_not_matter(some_labels, some_fields):
    both = list(zip(some_labels, some_fields, strict=True))
    forward, backward, left, right = (LabelSums(SHAPE) for _ in range(4))
    for labels, field in both:
        forward.add(label_shares(labels, field))
    for labels, field in reversed(both):
        backward.add(label_shares(labels, field))
    for part, chosen in ((left, both[:2]), (right, both[2:])):
        for labels, field in chosen:
            part.add(label_shares(labels, field))
    left.merge(right)
    for other in (backward, left):
        assert other.subjects == 5
        for label in forward.labels:
            assert np.array_equal(other.probability(label), forward.probability(label))


def test_a_subject_is_subtracted_exactly(some_labels, some_fields):
    shares = [label_shares(*both) for both in zip(some_labels, some_fields, strict=True)]
    without, subtracted = LabelSums(SHAPE), LabelSums(SHAPE)
    for one in shares[1:]:
        without.add(one)
    for one in shares:
        subtracted.add(one)
    subtracted.add(shares[0], sign=-1)
    for label in without.labels:
        assert np.array_equal(subtracted.probability(label), without.probability(label))
    assert np.array_equal(subtracted.majority(), without.majority())


def test_labels_of_any_size_stay_what_they_are():
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[4, 4, 4] = 2**40 + 1
    labels[2, 2, 2] = -3
    sums = LabelSums(SHAPE)
    sums.add(label_shares(labels, still()))
    assert sums.labels == [-3, 2**40 + 1]
    assert np.array_equal(sums.majority(), labels)
    assert sums.majority().dtype == np.int64


def test_the_majority_at_points_is_that_of_the_interpolated_probabilities(some_labels):
    sums = LabelSums(SHAPE)
    for labels in some_labels:
        sums.add(label_shares(labels, still()))
    on_grid = np.indices(SHAPE).astype(float)
    assert np.array_equal(sums.majority_at(on_grid), sums.majority())
    moved = sums.majority_at(on_grid + np.array([1.0, 0, 0]).reshape(3, 1, 1, 1))
    assert np.array_equal(moved[:-1], sums.majority()[1:])
    assert not moved[-1].any()  # outside is background


def test_the_majority_at_any_points_is_that_of_every_label_interpolated(some_labels, some_fields):
    """Also where points lie at the rim, outside, or on voxels."""
    sums = LabelSums(SHAPE)
    for labels, field in zip(some_labels, some_fields, strict=True):
        sums.add(label_shares(labels, field))
    made = np.random.default_rng(4)
    places = made.uniform(-2, 10, (3, 6, 50))
    places[:, 0] = np.rint(places[:, 0])
    there = {
        label: map_coordinates(
            sums.probability(label).astype(float), places, order=1, mode="grid-constant"
        )
        for label in sums.labels
    }
    every = np.stack([1 - sum(there.values()), *there.values()])
    ranked = np.sort(every, axis=0)
    certain = ranked[-1] - ranked[-2] > 1e-3
    assert certain.mean() > 0.9
    wanted = np.array([0, *there])[every.argmax(axis=0)]
    assert np.array_equal(sums.majority_at(places)[certain], wanted[certain])


def test_no_labels_at_all():
    assert label_shares(np.zeros(SHAPE, int), still()) == {}
    assert not LabelSums(SHAPE).labels
