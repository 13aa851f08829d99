"""Several passes: each corrects what the earlier ones left."""

from __future__ import annotations

import torch

from scripts.networks.integration import VelocityIntegration
from scripts.networks.pair_inputs import PairForces
from scripts.networks.passes import PairPasses
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.spatial.warp import Warp


def passes_of(moving: torch.Tensor, fixed: torch.Tensor, forces: bool) -> PairPasses:
    unet = RegistrationUNet(
        3, PairForces.channels(3) if forces else 2, (4, 4), (4, 4, 4), factor=2, seed=0
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(unet.field.weight, std=0.05)
    return PairPasses(
        unet, GaussianSmoothing(1.5), VelocityIntegration(5, 2), Warp(), moving, fixed,
        inputs=PairForces() if forces else None,
    )  # fmt: skip


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.rand(1, 1, 17, 16, 12, generator=rng) for _ in range(2))  # type: ignore[return-value]


def test_each_pass_adds_what_a_look_at_the_moved_image_finds() -> None:
    for forces in (False, True):
        made = passes_of(*pair(), forces)
        first, second = made.run((2, 1))
        assert first.shape == second.shape == (1, 3, 9, 8, 6)
        torch.testing.assert_close(second - first, made.one_pass(1, first))
        assert (second - first).abs().max() > 1e-4
        assert not torch.equal(made.one_pass(1, first), made.one_pass(1))  # it isn't shown the same


def test_with_forces_no_gradient_passes_through_what_is_seen() -> None:
    for forces in (False, True):
        moving, fixed = pair()
        moving.requires_grad_(True)
        made = passes_of(moving, fixed, forces)
        made.run((2, 1))[-1].square().sum().backward()
        assert (moving.grad is None) == forces
        weight = made.unet.field.weight
        assert weight.grad is not None and weight.grad.abs().max() > 0
