"""The barycentre of shifted copies is the copy at the mean shift; mass and symmetry."""

from __future__ import annotations

import pytest
import torch

from scripts.baselines.wasserstein import OutOfReachError, log_gaussian, wasserstein_barycentre

SHAPE = (20, 18, 16)


def blob(centre, widths=(1.8, 2.2, 1.5), shape=SHAPE) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    parts = zip(axes, centre, widths, strict=True)
    return torch.exp(-0.5 * sum(((x - c) / w) ** 2 for x, c, w in parts))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of mass that lies elsewhere."""
    return float((a / a.sum() - b / b.sum()).abs().sum() / 2)


def test_shifted_blobs_meet_at_their_mean_place_unblurred():
    centres = [(7, 8, 7), (12, 8, 7), (8, 11, 10)]
    result, moved = wasserstein_barycentre([blob(c) for c in centres], (1, 1, 1), 1.0, 20)
    expected = blob((9, 9, 8))
    assert distance(result, expected) < 1e-3
    assert float(result.max()) == pytest.approx(float(expected.max()), rel=1e-2)
    assert moved < 1e-2
    # Averaging gives nothing of the kind.
    assert distance(sum(blob(c) for c in centres), expected) > 0.3


def test_widths_average_too():
    # Gaussians of one centre: the barycentre's width is the mean of theirs.
    maps = [blob((9.5, 8.5, 7.5), (w, w, w)) for w in (1.5, 2.5)]
    result, _ = wasserstein_barycentre(maps, (1, 1, 1), 0.8, 60)
    assert distance(result, blob((9.5, 8.5, 7.5), (2, 2, 2))) < 1e-2


def test_one_map_is_its_own_barycentre_and_mass_is_the_mean():
    one = 3 * blob((9, 9, 8))
    result, _ = wasserstein_barycentre([one], (1, 1, 1), 1.0, 20)
    assert distance(result, one) < 1e-3
    assert float(result.sum()) == pytest.approx(float(one.sum()))
    both, _ = wasserstein_barycentre([one, 0.5 * blob((8, 9, 8))], (1, 1, 1), 1.0, 5)
    assert float(both.sum()) == pytest.approx(float(one.sum() * 3.5 / 6), rel=1e-4)


def test_voxels_of_other_sizes_are_seen_in_millimetres():
    # Twice as far between voxels along x, half the width in voxels: the same picture.
    coarse = [blob((c, 8, 8), (1.2, 2.4, 2.4)) for c in (7, 11)]
    result, _ = wasserstein_barycentre(coarse, (2, 1, 1), 2.0, 30)
    assert distance(result, blob((9, 8, 8), (1.2, 2.4, 2.4))) < 2e-2


def test_planes_are_as_good_as_volumes():
    maps = [blob((6, 8), (2, 2), (18, 18)), blob((12, 8), (2, 2), (18, 18))]
    result, _ = wasserstein_barycentre(maps, (1, 1), 1.0, 20)
    assert distance(result, blob((9, 8), (2, 2), (18, 18))) < 5e-3  # the border cuts one


def two_points(first: int, second: int) -> list[torch.Tensor]:
    maps = [torch.zeros(40, 6), torch.zeros(40, 6)]
    maps[0][first, 2] = maps[1][second, 2] = 1.0
    return maps


def test_points_far_apart_meet_halfway_in_either_order():
    result, _ = wasserstein_barycentre(two_points(5, 33), (1, 1), 1.0, 30)
    again, _ = wasserstein_barycentre(two_points(33, 5), (1, 1), 1.0, 30)
    torch.testing.assert_close(result, again)
    assert float((result.sum(1) * torch.arange(40)).sum()) == pytest.approx(19, abs=0.01)
    assert float(result[18:21].sum()) > 0.95


def test_points_out_of_reach_are_an_error_and_no_wrong_atlas():
    with pytest.raises(OutOfReachError):
        wasserstein_barycentre(two_points(0, 38), (1, 1), 0.7, 20)


def test_a_map_without_mass_is_refused():
    with pytest.raises(ValueError, match="without mass"):
        wasserstein_barycentre([blob((9, 9, 8)), torch.zeros(SHAPE)], (1, 1, 1), 1.0)


def test_log_gaussian_is_the_logarithm_of_the_convolution():
    torch.manual_seed(0)
    log_density = torch.randn(5, 4, 3, dtype=torch.float64) * 3
    log_density[0, 0, 0] = -torch.inf
    kernels = [torch.rand(n, n, dtype=torch.float64) for n in (5, 4, 3)]
    direct = torch.einsum("xyz,xi,yj,zk->ijk", log_density.exp(), *kernels).log()
    torch.testing.assert_close(log_gaussian(log_density, kernels), direct)
    nothing = torch.full((5, 4, 3), -torch.inf, dtype=torch.float64)
    assert (log_gaussian(nothing, kernels) < -600).all()
