import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scripts.metrics import core_share, dice, pairwise_dice

masks = arrays(bool, (3, 4, 5))


def test_dice_by_hand():
    assert dice([1, 1, 0, 0], [1, 0, 1, 1]) == pytest.approx(2 * 1 / (2 + 3))


def test_two_empty_maps_agree_and_one_empty_map_does_not():
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == 0.0


@given(masks, masks)
def test_dice_is_symmetric_bounded_and_one_only_for_equal_maps(a, b):
    assert dice(a, b) == dice(b, a)
    assert 0 <= dice(a, b) <= 1
    assert (dice(a, b) == 1.0) == bool((a == b).all())


@given(arrays(bool, (4, 3, 3)))
def test_pairwise_dice_is_the_mean_over_pairs(maps):
    pairs = [dice(maps[i], maps[j]) for i in range(4) for j in range(i)]
    assert pairwise_dice(maps) == pytest.approx(np.mean(pairs))


def test_core_share_counts_both_thresholds_inclusively():
    assert core_share([0, 5, 10, 50, 90, 100]) == pytest.approx(2 / 4)
    assert core_share([0, 9.9]) == 0.0


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        dice(np.ones(2), np.ones(3))


@given(st.integers(0, 1))
def test_pairs_need_two_maps(count):
    with pytest.raises(ValueError, match="at least 2"):
        pairwise_dice(np.ones((count, 3), bool))
