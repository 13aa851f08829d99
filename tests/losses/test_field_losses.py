"""Losses of fields against their closed forms."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.fields import (
    AsImagesLoss,
    FoldLoss,
    JacobianDistanceLoss,
    MixedLoss,
    determinants,
    field_loss,
)
from scripts.losses.images import image_loss
from scripts.settings.field_losses import FIELD_LOSSES, IMAGE_LOSSES
from scripts.spatial.jacobian import jacobian_determinant

NAMES = [
    *FIELD_LOSSES, "vdclip2:10",
    *(n for n in IMAGE_LOSSES if not n.startswith("perceptual") and n not in ("mae", "mse")),
]  # fmt: skip


def field(d: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, d, *[6] * d, generator=generator)
    mode = "trilinear" if d == 3 else "bilinear"
    return 3 * torch.nn.functional.interpolate(coarse, size=(26, 24, 22)[:d], mode=mode)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_a_loss_with_a_finite_gradient(name, d):
    true = field(d)
    result = (true + 4 * field(d, 1)).requires_grad_()
    loss = field_loss(name, d, 30.0)(result, true)
    assert loss.dim() == 0
    loss.backward()
    assert torch.isfinite(result.grad).all()
    assert result.grad.abs().max() > 0


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("grad", "jacobian")])
def test_the_true_field_has_the_least_loss(name):
    true = field()
    loss = field_loss(name, 2, 30.0)
    assert loss(true, true) < loss(true + 2 * field(seed=5), true)


def test_distances_of_a_constant_difference():
    true = field()
    result = true + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    values = {name: float(field_loss(name, 2, 30.0)(result, true)) for name in FIELD_LOSSES}
    assert values["vector_distance"] == pytest.approx((25 + 1e-3) ** 0.5, rel=1e-5)
    assert values["vdclip2"] == pytest.approx((25.001**0.5 / 20) ** 2, rel=1e-5)
    assert values["vdclip3"] == pytest.approx((25.001**0.5 / 20) ** 3, rel=1e-5)
    clipped = field_loss("vdclip4:2.5", 2, 30.0)(result, true)
    assert float(clipped) == pytest.approx((25.001**0.5 / 2.5) ** 4, rel=1e-5)
    assert values["mse_po"] == pytest.approx(25, rel=1e-5)
    assert values["mae"] == pytest.approx(3.5, rel=1e-5)
    assert values["mse"] == pytest.approx(12.5, rel=1e-5)
    assert values["jacobian_distance"] == pytest.approx(0, abs=1e-5)


def test_equal_fields_keep_a_finite_slope():
    true = field()
    result = true.clone().requires_grad_()
    field_loss("vector_distance", 2, 30.0)(result, true).backward()
    assert torch.isfinite(result.grad).all()


@pytest.mark.parametrize("d", [2, 3])
def test_determinants_are_those_of_the_house(d):
    fields = field(d)
    for one, result in zip(fields, determinants(fields), strict=True):
        torch.testing.assert_close(result, jacobian_determinant(one), atol=1e-4, rtol=1e-4)


def test_folds_are_penalised_and_their_gradient_unfolds():
    line = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 1, 12, 12)
    folding = torch.cat([-1.5 * line, torch.zeros_like(line)], 1).clone().requires_grad_()
    loss = FoldLoss()(folding, folding)
    assert float(loss.detach()) == pytest.approx(0.5)
    loss.backward()
    assert FoldLoss()(folding.detach() - folding.grad, folding) < loss
    still = torch.zeros(1, 2, 8, 8)
    assert FoldLoss()(still, still) == 0


def test_the_jacobian_distance_sees_different_fields():
    line = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 1, 12, 12)
    zero = torch.zeros(1, 2, 12, 12)
    stretched = torch.cat([0.2 * line, torch.zeros_like(line)], 1)
    assert float(JacobianDistanceLoss()(stretched, zero)) == pytest.approx(0.2, rel=1e-4)


def test_an_image_loss_reads_each_component_over_10():
    true, result = field(), field(seed=2)
    loss = image_loss("pearson", 2)
    parts = [loss(result[:, i : i + 1] / 10, true[:, i : i + 1] / 10) for i in range(2)]
    torch.testing.assert_close(AsImagesLoss(loss)(result, true), sum(parts) / 2)


def test_mixtures_are_weighted_sums():
    true, result = field(), field(seed=2)
    one, two = (field_loss(name, 2, 30.0) for name in ("vector_distance", "jacobian"))
    mixed = MixedLoss([(0.2, one), (0.8, two)])(result, true)
    torch.testing.assert_close(mixed, 0.2 * one(result, true) + 0.8 * two(result, true))
