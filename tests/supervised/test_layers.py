"""Affine fields and compositions against their closed forms."""

from __future__ import annotations

import pytest
import torch

from scripts.supervised.layers import (
    AffineField,
    CentredAffine,
    affine_of_field,
    compose_displacements,
    warp_image,
)

SHAPES = [(20, 31), (12, 9, 14)]


def random_affine(d: int, seed: int = 0, size: float = 0.05) -> CentredAffine:
    generator = torch.Generator().manual_seed(seed)
    linear = size * torch.randn(2, d, d, generator=generator)
    return CentredAffine(linear, 2 * torch.randn(2, d, generator=generator))


def points(shape):
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_deviations_about_the_centre_in_half_extents(shape):
    d = len(shape)
    numbers = 0.1 * torch.randn(3, d * (d + 1), generator=torch.Generator().manual_seed(1))
    result = AffineField()(numbers, shape)
    half = torch.tensor([n / 2 for n in shape]).view(d, *[1] * d)
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(d, *[1] * d)
    unit = (points(shape) - centre) / half
    rows = numbers.view(3, d, d + 1)
    wanted = torch.einsum("bij,j...->bi...", rows[:, :, :d], unit)
    wanted = (wanted + rows[:, :, d].view(3, d, *[1] * d)) * half
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)
    assert AffineField()(torch.zeros(1, d * (d + 1)), shape).abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_an_affine_after_a_field_is_exact_also_outside_of_the_grid(shape):
    affine = random_affine(len(shape))
    inner = 3 * torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(2))
    result = points(shape) + affine.after(inner)
    there = points(shape) + inner
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(-1, *[1] * len(shape))
    moved = torch.einsum("bij,bj...->bi...", affine.linear, there - centre)
    wanted = there + moved + affine.shift.view(2, -1, *[1] * len(shape))
    torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_of_an_affine_leads_back(shape):
    affine = random_affine(len(shape))
    back = affine.inverse().after(affine.displacement(shape))
    assert back.abs().max() < 1e-4


def test_composition_holds_the_borders_displacement():
    shape = (16, 16)
    shift = torch.tensor([5.0, -3.0]).view(1, 2, 1, 1).expand(1, 2, *shape)
    result = compose_displacements(shift, shift)
    torch.testing.assert_close(result, 2 * shift)


def test_composition_is_f_after_g_in_this_order():
    shape = (30, 30)
    x = points(shape)
    g = torch.zeros(1, 2, *shape)
    g[0, 0] = 2.0
    f = torch.zeros(1, 2, *shape)
    f[0, 1] = 0.1 * x[0]
    result = compose_displacements(f, g)
    inside = (..., slice(2, 26), slice(2, 28))
    torch.testing.assert_close(result[0, 1][inside], (0.1 * (x[0] + 2))[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_affine_of_an_affine_field_is_itself(shape):
    affine = random_affine(len(shape))
    result = affine_of_field(affine.displacement(shape))
    torch.testing.assert_close(result.linear, affine.linear, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.shift, affine.shift, atol=1e-4, rtol=1e-4)


def test_a_warp_reads_the_image_at_x_plus_u():
    image = torch.arange(30.0).view(1, 1, 5, 6)
    u = torch.zeros(1, 2, 5, 6)
    u[:, 1] = 1.0
    torch.testing.assert_close(warp_image(image, u)[..., :-1], image[..., 1:])
    torch.testing.assert_close(warp_image(image, u)[..., -1], image[..., -1])
