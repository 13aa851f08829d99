"""Local correlation: a brute-force count, invariances, and its gradient by differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from scripts.losses import LocalCorrelationLoss, local_correlation


def sparse(shape: tuple[int, ...] = (20, 19, 18), seed: int = 0) -> torch.Tensor:
    """A log density that is 0 but for a tube, 5 voxels or more from every side."""
    torch.manual_seed(seed)
    image = torch.zeros(1, 1, *shape)
    inner: Any = (..., *(slice(5, n - 5) for n in shape[:-1]), slice(8, 11))
    image[inner] = 5 * torch.rand(image[inner].shape)
    return image


def brute_force(m: np.ndarray, f: np.ndarray, window: int) -> float:
    """Mean of numpy's correlation coefficient over every window, cut at the border."""
    half, result = window // 2, []
    for centre in itertools.product(*(range(n) for n in f.shape)):
        box = tuple(slice(max(0, c - half), c + half + 1) for c in centre)
        result.append(np.corrcoef(m[box].ravel(), f[box].ravel())[0, 1])
    return float(np.mean(result))


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 5), (3, 4, 3)])
def test_on_a_dense_image_it_is_the_mean_coefficient(shape: tuple[int, ...], window: int) -> None:
    """Windows wider than the image are among them."""
    torch.manual_seed(0)
    fixed = torch.rand(1, 1, *shape, dtype=torch.float64)
    moving = 0.5 * fixed + torch.rand_like(fixed)
    expected = brute_force(moving[0, 0].numpy(), fixed[0, 0].numpy(), window)
    result = float(local_correlation(moving, fixed, window))
    assert result == pytest.approx(expected, abs=3e-3)
    assert abs(expected) > 0.1


def test_channels_and_batch_are_averaged() -> None:
    pairs = [(sparse(seed=s), sparse(seed=s + 10)) for s in range(4)]
    alone = torch.stack([local_correlation(m, f, 5) for m, f in pairs])
    moving = torch.cat([m for m, _ in pairs]).view(2, 2, 20, 19, 18)
    fixed = torch.cat([f for _, f in pairs]).view(2, 2, 20, 19, 18)
    assert alone.std() > 1e-4
    torch.testing.assert_close(local_correlation(moving, fixed, 5), alone.mean())


@pytest.mark.parametrize("window", [3, 5, 7, 9])
def test_an_image_correlates_with_itself_and_against_its_negative(window: int) -> None:
    image = sparse()
    assert float(local_correlation(image, image, window)) > 0.99
    assert float(local_correlation(-image, image, window)) < -0.99
    loss = LocalCorrelationLoss(window)
    assert float(loss(image, image)) == pytest.approx(0, abs=0.01)
    assert float(loss(-image, image)) == pytest.approx(2, abs=0.01)


def test_unrelated_images_score_near_zero_and_a_shift_lies_between() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(1, 1, 24, 24, 24), torch.rand(1, 1, 24, 24, 24)
    assert abs(float(local_correlation(a, b, 7))) < 0.02
    image = sparse()
    score = float(local_correlation(image.roll(1, dims=4), image, 7))
    assert 0.1 < score < 0.9


def test_gain_and_offset_of_the_moving_image_do_not_matter_where_it_has_signal() -> None:
    torch.manual_seed(0)
    fixed, moving = (torch.rand(1, 1, 12, 11, 10, dtype=torch.float64) for _ in range(2))
    moving = moving + fixed
    expected = local_correlation(moving, fixed, 5)
    result = local_correlation(3 * moving + 7, fixed, 5)
    torch.testing.assert_close(result, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_data_does_not_matter(scale: float) -> None:
    """Densities of 1e-6 and counts of 1e6 alike, in float32."""
    fixed, moving = sparse(seed=0), 0.5 * sparse(seed=0) + 0.5 * sparse(seed=1)
    expected = local_correlation(moving, fixed, 7)
    assert 0.3 < float(expected) < 0.98
    result = local_correlation(moving * scale, fixed * scale, 7)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=0)


def test_more_empty_background_changes_nothing() -> None:
    fixed, moving = sparse(seed=0), 0.5 * sparse(seed=0) + 0.5 * sparse(seed=1)
    expected = local_correlation(moving, fixed, 7)
    wide, still = (torch.nn.functional.pad(x, (10, 12, 15, 9, 20, 20)) for x in (moving, fixed))
    torch.testing.assert_close(local_correlation(wide, still, 7), expected, rtol=1e-4, atol=0)
    assert float(expected) > 0.3


def test_template_where_the_subject_has_nothing_costs() -> None:
    fixed = torch.nn.functional.pad(sparse(), (12, 12))
    moving = fixed.clone()
    moving[..., 2:7] = torch.rand(moving[..., 2:7].shape)
    clean, spilled = (float(local_correlation(m, fixed, 5)) for m in (fixed, moving))
    assert spilled < clean - 0.2


@pytest.mark.parametrize("window", [3, 7])
def test_it_is_finite_and_so_is_its_gradient_on_sparse_and_flat_images(window: int) -> None:
    one_voxel = torch.zeros(1, 1, 9, 9, 9)
    one_voxel[..., 4, 4, 4] = 8
    images = [torch.zeros(1, 1, 9, 9, 9), torch.ones(1, 1, 9, 9, 9), one_voxel, 1e5 * one_voxel]
    for m, f in itertools.product(images, images):
        moving = m.clone().requires_grad_(True)
        score = local_correlation(moving, f, window)
        score.backward()
        assert -1.001 <= float(score.detach()) <= 1.001
        assert moving.grad is not None
        assert torch.isfinite(moving.grad).all()


def test_two_empty_images_score_zero() -> None:
    empty = torch.zeros(1, 1, 8, 8, 8)
    assert float(local_correlation(empty, empty, 5)) == 0


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_gradient_by_differences(shape: tuple[int, ...], window: int) -> None:
    torch.manual_seed(0)
    moving = torch.rand(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    fixed = torch.rand(2, 2, *shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m: local_correlation(m, fixed, window), (moving,), atol=1e-7, rtol=1e-5
    )


def test_gradient_toward_the_fixed_image_up_to_what_counts_as_flat() -> None:
    """The threshold of flatness (1e-4 of the fixed image's variance) is held constant."""
    torch.manual_seed(0)
    moving = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    fixed = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: local_correlation(moving, f, 5), (fixed,), atol=1e-5, rtol=1e-2
    )


def test_gradient_on_a_sparse_image_by_differences() -> None:
    """Many windows are flat in one image or both."""
    fixed = sparse((13, 13, 13)).double()
    moving = (0.3 + 0.2 * fixed.roll(1, 3)) * (fixed.roll(1, 3) > 0)
    direction = torch.randn_like(moving) * (moving > 0)
    point = moving.clone().requires_grad_(True)
    local_correlation(point, fixed, 5).backward()
    assert point.grad is not None
    step = 1e-6
    ahead, behind = (local_correlation(moving + s * step * direction, fixed, 5) for s in (1, -1))
    slope = float((point.grad * direction).sum())
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-4)


def test_float32_even_inside_autocast_and_for_half_inputs() -> None:
    image = sparse()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LocalCorrelationLoss(7)(image.bfloat16(), image.bfloat16())
    assert loss.dtype == torch.float32
    assert float(loss) < 0.01


@pytest.mark.parametrize("window", [1, 2, 4, 0, -3])
def test_a_window_is_odd_and_at_least_three(window: int) -> None:
    with pytest.raises(ValueError, match=f"odd and at least 3, got {window}"):
        LocalCorrelationLoss(window)
