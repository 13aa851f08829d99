"""Gaussian smoothing of fields: constants, ramps, scipy's filter, its own adjoint in the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from scripts.networks.smoothing import GaussianSmoothing


def field(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 5, 30), (12, 11)])
@pytest.mark.parametrize("sigma", [0.5, 1.5, 6.0])
def test_a_constant_stays_as_it_is_up_to_the_border(shape: tuple[int, ...], sigma: float) -> None:
    constant = torch.full((2, 3, *shape), 1.7)
    torch.testing.assert_close(GaussianSmoothing(sigma)(constant), constant)


def test_away_from_the_border_a_ramp_stays_and_it_is_scipys_filter() -> None:
    smooth = GaussianSmoothing(1.5)
    ramp = torch.arange(40.0).expand(1, 1, 3, 40)
    torch.testing.assert_close(smooth(ramp)[..., 8:-8], ramp[..., 8:-8])
    noise = field(1, 2, 30, 28, 26)
    expected = gaussian_filter(noise[0, 1].double().numpy(), 1.5, truncate=4.0)
    result = smooth(noise)[0, 1].numpy()
    inner = (slice(7, -7),) * 3
    np.testing.assert_allclose(result[inner], expected[inner], atol=1e-5)


@pytest.mark.parametrize("shape", [(100, 6, 7), (5, 130, 4), (3, 4, 97), (150, 73)])
@pytest.mark.parametrize("sigma", [1.5, 3.0, 20.0])
def test_long_axes_are_smoothed_in_bands_to_the_same_values(
    shape: tuple[int, ...], sigma: float
) -> None:
    noise, smooth = field(2, 2, *shape), GaussianSmoothing(sigma)
    whole = smooth(noise.clone().requires_grad_())  # with a gradient: one product
    torch.testing.assert_close(smooth(noise), whole.detach(), atol=1e-6, rtol=1e-6)
    assert smooth(noise).is_contiguous()


def test_without_a_width_nothing_changes() -> None:
    noise = field(1, 3, 6, 5, 4)
    assert torch.equal(GaussianSmoothing(0.0)(noise), noise)


def test_gradients_are_those_of_differences_also_under_autocast() -> None:
    smooth = GaussianSmoothing(0.8)
    noise = field(1, 1, 4, 3).requires_grad_(True)
    weights = field(1, 1, 4, 3, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        result = smooth(noise)
    assert result.dtype == torch.float32
    (gradient,) = torch.autograd.grad((result * weights).sum(), noise)
    step = torch.zeros(1, 1, 4, 3)
    step[0, 0, 2, 1] = 1.0  # linear: one step tells the derivative
    with torch.no_grad():
        expected = ((smooth(noise + step) - smooth(noise)) * weights).sum()
    torch.testing.assert_close(gradient[0, 0, 2, 1], expected)
