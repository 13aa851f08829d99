"""A whole step, loss and gradients: fast parts together give what MONAI's plain ones give."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp

from scripts.atlas.network import AtlasNetwork
from scripts.losses import AtlasLoss
from scripts.networks import autocast

SHAPE = (24, 28, 20)


def blobs(seed: int) -> torch.Tensor:
    """A smooth log density with empty background, ``(1, 1, *SHAPE)``."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in SHAPE], indexing="ij")
    total = torch.zeros(SHAPE)
    for _ in range(6):
        centre = [n * (0.25 + 0.5 * float(torch.rand(1, generator=generator))) for n in SHAPE]
        square = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True))
        total += torch.exp(-square / 12)
    return (3 * total - 0.3).clamp_min(0)[None, None]


def network(factor: int) -> AtlasNetwork:
    """With fields of about a voxel, unsmoothed, because MONAI's parts have no smoothing."""
    torch.manual_seed(0)
    made = AtlasNetwork(blobs(0).numpy(), field_resolution=factor, velocity_smoothing=0.0)
    torch.nn.init.normal_(made.unet.field.weight, std=0.3)
    return made.train()


def gradients(made: AtlasNetwork, loss: torch.Tensor) -> torch.Tensor:
    """All of them in one row, the template's too."""
    parameters = [*made.unet.parameters(), made.template]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def our_step(made: AtlasNetwork, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradients as the trainer has them."""
    image = blobs(1)
    with autocast("cpu", dtype):
        result = made(image)
    terms = AtlasLoss((1.0, 1.0, 1.0), made.field_resolution)(
        result["warped"][:, 0], image, result["velocity"][:, 0]
    )
    return terms["loss"].detach(), gradients(made, terms["loss"])


def test_float32_at_full_resolution_equals_monais_composition() -> None:
    made, image = network(1), blobs(1)
    velocity = made.unet(torch.cat([made.template, image], 1) * made.input_scale)
    field = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border")(velocity)
    warped = Warp(mode="bilinear", padding_mode="zeros")(made.template, field)
    plain = AtlasLoss((1.0, 1.0, 1.0), 1)(warped, image, velocity)["loss"]
    expected = gradients(made, plain)
    loss, result = our_step(made, "float32")
    assert float(field.detach().abs().max()) > 0.5
    assert math.isclose(float(loss), float(plain), rel_tol=1e-5)
    assert float((result - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("factor", [1, 2])
def test_bfloat16_convolutions_give_nearly_the_step_of_float32(factor: int) -> None:
    exact, expected = our_step(network(factor), "float32")
    loss, result = our_step(network(factor), "bfloat16")
    assert math.isclose(float(loss), float(exact), rel_tol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(result, expected, dim=0)
    assert float(cosine) > 0.999
