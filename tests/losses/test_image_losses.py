"""Image losses: least where images are equal, and their closed forms."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.images import (
    EvenLocalCorrelationLoss,
    PearsonLoss,
    SignalToNoiseLoss,
    image_loss,
)
from scripts.settings.field_losses import IMAGE_LOSSES

NAMES = [name for name in IMAGE_LOSSES if not name.startswith("perceptual")]


def image(d: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 1, *(24, 28, 22)[:d], generator=generator)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_equal_images_have_the_least_loss_and_a_gradient_leads_there(name, d):
    true = image(d)
    loss = image_loss(name, d)
    result = (0.5 * true + 0.5 * image(d, 1)).requires_grad_()
    start = loss(result, true)
    start.backward()
    assert torch.isfinite(result.grad).all()
    assert result.grad.abs().max() > 0
    assert loss(true, true) < start - 1e-3
    step = 1e-3 * result.grad / result.grad.norm()
    assert loss(result.detach() - step, true) < start


def test_an_even_window_is_a_plain_mean_of_correlations_over_blocks():
    true, result = image(seed=3).double(), image(seed=4).double()
    window, values = 12, []
    for batch in range(2):
        coefficients = []
        for i in range(-6, 24 - 6 + 1):
            for j in range(-6, 28 - 6 + 1):
                block = (slice(max(i, 0), i + window), slice(max(j, 0), j + window))
                a, b = (one[batch, 0][block].flatten() for one in (result, true))
                coefficients.append(torch.corrcoef(torch.stack([a, b]))[0, 1])
        values.append(torch.stack(coefficients).mean())
    wanted = 1 - torch.stack(values).mean()
    assert float(EvenLocalCorrelationLoss(12)(result, true)) == pytest.approx(
        float(wanted), abs=1e-3
    )


def test_even_windows_do_not_count_the_empty_background():
    true = torch.zeros(1, 1, 64, 64)
    true[..., 24:40, 24:40] = image()[:1, :, :16, :16]
    assert EvenLocalCorrelationLoss(12)(true, true) < 0.01
    with pytest.raises(ValueError, match="window must be even"):
        EvenLocalCorrelationLoss(9)


def test_pearson_does_not_see_gain_and_offset_and_survives_a_constant():
    true = image()
    assert float(PearsonLoss()(3 * true + 2, true)) == pytest.approx(0, abs=1e-5)
    assert float(PearsonLoss()(-true, true)) == pytest.approx(2, abs=1e-5)
    flat = torch.full_like(true, 0.5).requires_grad_()
    loss = PearsonLoss()(flat, true)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1, abs=1e-3)
    assert torch.isfinite(flat.grad).all()


def test_the_signal_to_noise_ratio_is_in_decibels_of_the_stated_range():
    true = image()
    assert float(SignalToNoiseLoss()(true + 0.1, true)) == pytest.approx(-20, abs=1e-3)
    assert float(SignalToNoiseLoss(10.0)(true + 0.1, true)) == pytest.approx(-40, abs=1e-2)
    assert float(SignalToNoiseLoss()(true, true)) == pytest.approx(-80, abs=1e-3)


def test_ssim_depends_on_the_range_that_is_stated():
    true = image()
    near, wide = (image_loss("ssim", 2, r)(true + 0.1 * image(seed=2), true) for r in (1.0, 64.0))
    assert wide < near


def test_unknown_names_and_missing_weights_are_errors():
    with pytest.raises(ValueError, match="'foo' is not a loss of an image"):
        image_loss("foo", 2)
    with pytest.raises(ValueError, match="needs its network"):
        image_loss("perceptual_loss_net_vgg", 2)
