"""The map of local misfit and its regions: closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.metrics.misfit import local_misfit, poor_regions


@pytest.fixture
def tract():
    density = np.zeros((1, 30, 20, 20))
    density[:, 3:27, 7:13, 7:13] = 1.0
    return density


def test_equal_densities_fit_and_what_only_one_has_does_not(tract):
    assert local_misfit(tract, tract, 0.01, 5).max() == 0
    gone = tract.copy()
    gone[:, 10:20] = 0
    misfit = local_misfit(gone, tract, 0.01, 5)
    assert np.allclose(misfit[13:17, 9:11, 9:11], 1)
    assert misfit[5, 10, 10] == 0
    assert misfit[15, 1, 1] == 0  # neither is there


def test_presences_of_nine_and_five_tenths():
    # x / (x + offset): 0.9 against 0.5, so 0.16 / (0.81 + 0.25).
    subject, atlas = np.full((1, 9, 9, 9), 9.0), np.full((1, 9, 9, 9), 1.0)
    assert local_misfit(subject, atlas, 1.0, 3)[4, 4, 4] == pytest.approx(0.16 / 1.06)


def test_voxels_that_do_not_count_are_left_out(tract):
    gone = tract.copy()
    gone[:, 10:20] = 0
    valid = np.ones(tract.shape[1:], bool)
    valid[10:20] = False
    assert local_misfit(gone, tract, 0.01, 5, valid).max() == 0
    gone[:, 10:20] = 77
    assert local_misfit(gone, tract, 0.01, 5, valid).max() == 0


def test_regions_have_their_volume_and_place():
    misfit = np.zeros((20, 20, 20))
    misfit[2:6, 3:7, 4:8] = 0.9
    misfit[12:14, 12:14, 12:14] = 1.0
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10, 0, 0
    (large,) = poor_regions(misfit, affine, 0.8, 100)
    assert large.volume == pytest.approx(64 * 8)
    assert large.centre == pytest.approx((10 - 2 * 3.5, 2 * 4.5, 2 * 5.5))
    assert len(poor_regions(misfit, affine, 0.8, 60)) == 2
    assert poor_regions(misfit, affine, 1.0, 0) == []
