"""A velocity that folds is smoothed where it does, and only there."""

from __future__ import annotations

import numpy as np
import torch

from scripts.atlas.network import AtlasNetwork
from scripts.spatial.jacobian import smallest_corner_determinant
from scripts.spatial.unfolding import unfolded_velocity


def network(factor: int = 2) -> AtlasNetwork:
    template = np.zeros((1, 1, 21, 20, 24), dtype=np.float32)
    template[..., 8:12, 8:12, 8:12] = 1
    return AtlasNetwork(
        template, enc_features=[4, 4], dec_features=[4, 4, 4], field_resolution=factor
    )


def smallest(net: AtlasNetwork, velocity: torch.Tensor) -> float:
    return min(float(smallest_corner_determinant(u[0]).min()) for u in net.displacements(velocity))


def test_a_rough_velocity_is_unfolded() -> None:
    for factor in (1, 2):
        net = network(factor)
        generator = torch.Generator().manual_seed(0)
        velocity = 4 * torch.randn(1, 3, *net.reduced, generator=generator)
        assert smallest(net, velocity) <= 0
        assert smallest(net, unfolded_velocity(net, velocity)) >= 0.1


def test_a_smooth_velocity_is_left_as_it_is() -> None:
    net = network()
    velocity = torch.full((1, 3, *net.reduced), 2.0)
    assert torch.equal(unfolded_velocity(net, velocity), velocity)


def test_smoothing_stays_near_the_fold() -> None:
    net = network()
    velocity = torch.zeros(1, 3, *net.reduced)
    generator = torch.Generator().manual_seed(2)
    velocity[..., 3:8, 3:8, 2:5] = 5 * torch.randn(1, 3, 5, 5, 3, generator=generator)
    assert smallest(net, velocity) < 0.1
    mended = unfolded_velocity(net, velocity)
    assert smallest(net, mended) >= 0.1
    far = mended.clone()
    far[:, :, :, :, :9] = 0
    assert not far.any()


def test_the_target_is_reached_as_asked() -> None:
    net = network()
    generator = torch.Generator().manual_seed(1)
    velocity = 2 * torch.randn(1, 3, *net.reduced, generator=generator)
    assert smallest(net, unfolded_velocity(net, velocity, smallest=0.5)) >= 0.5
