"""Voxels that don't count: they have no influence at all, and the others count as before."""

from __future__ import annotations

import pytest
import torch

from scripts.losses import AtlasLoss
from scripts.losses.local_correlation import local_correlation
from scripts.losses.presence import PresenceLoss

SHAPE = (13, 12, 11)


@pytest.fixture
def pair():
    made = torch.Generator().manual_seed(0)
    warped, image = torch.rand(2, 1, 2, *SHAPE, generator=made)
    image[:, :, :4] = 0
    velocity = torch.randn(1, 3, 7, 6, 6, generator=made)
    valid = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    valid[:, :, 5:9, 4:9, 3:8] = False
    return warped, image, velocity, valid


def slope(loss, warped, image, velocity, valid):
    leaf = warped.clone().requires_grad_(True)
    terms = loss(leaf, image, velocity, valid=valid)
    terms["loss"].backward()
    return {name: float(term.detach()) for name, term in terms.items()}, leaf.grad


def test_values_under_the_mask_change_nothing_bit_for_bit(pair):
    warped, image, velocity, valid = pair
    loss = AtlasLoss([2, 2, 2], 2, window=5, scales=(1, 2, 4))
    terms, gradient = slope(loss, warped, image, velocity, valid)
    for value in (0.0, 3.5, 1e30, torch.nan, torch.inf):
        again = slope(loss, warped, torch.where(valid, image, value), velocity, valid)
        assert again[0] == terms
        assert torch.equal(again[1], gradient)
    assert not gradient.where(valid, 0).equal(torch.zeros_like(gradient))
    assert torch.equal(gradient.where(~valid, 0), torch.zeros_like(gradient))
    other = slope(loss, torch.where(valid, warped, 9.0), image, velocity, valid)
    assert other[0] == terms


def test_a_mask_of_nothing_gives_the_loss_without_a_mask(pair):
    warped, image, velocity, valid = pair
    loss = AtlasLoss([2, 2, 2], 2, window=5, scales=(1, 2))
    with_mask, first = slope(loss, warped, image, velocity, torch.ones_like(valid))
    without, second = slope(loss, warped, image, velocity, None)
    assert with_mask == pytest.approx(without, rel=1e-5)
    assert torch.allclose(first, second, atol=1e-7)


def test_one_window_over_all_gives_the_correlation_of_the_valid_voxels():
    made = torch.Generator().manual_seed(1)
    m, f = torch.rand(2, 1, 1, 5, 5, 5, generator=made, dtype=torch.float64)
    valid = torch.rand(1, 1, 5, 5, 5, generator=made) > 0.4
    # Every window of 9 covers the whole image.
    result = local_correlation(m, f, 9, valid.double())
    by_hand = torch.corrcoef(torch.stack([m[valid], f[valid]]))[0, 1]
    assert float(result) == pytest.approx(float(by_hand), abs=2e-3)


def test_gradients_with_weights_are_those_of_finite_differences():
    made = torch.Generator().manual_seed(2)
    m, f = torch.rand(2, 1, 1, 6, 5, 4, generator=made, dtype=torch.float64)
    weight = torch.rand(1, 1, 6, 5, 4, generator=made, dtype=torch.float64)
    weight[:, :, 2:4] = 0
    m.requires_grad_(True)
    # The threshold for flat windows depends on the fixed image only, so this is smooth.
    assert torch.autograd.gradcheck(lambda x: local_correlation(x, f, 3, weight), m, atol=1e-5)


def test_presence_with_weights_is_the_dice_of_what_counts():
    made = torch.Generator().manual_seed(3)
    m, f = torch.rand(2, 1, 1, 6, 5, 4, generator=made)
    weight = torch.zeros(1, 1, 6, 5, 4)
    weight[:, :, :3] = 1
    loss = PresenceLoss()
    assert float(loss(m, f, weight)) == pytest.approx(
        float(loss(m[:, :, :3], f[:, :, :3])), rel=1e-5
    )
