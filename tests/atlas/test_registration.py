"""One subject registered: fields of known velocities, refinement, unfolding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.registration import Registration, estimate_velocity, fields_of
from scripts.atlas.velocity_refinement import refine_velocity
from scripts.losses import AtlasLoss
from scripts.spatial.grid import CropBox
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.unfolding import unfolded_velocity
from scripts.spatial.warp import warp

FEATURES: dict[str, Any] = {"enc_features": (4, 4), "dec_features": (4, 4, 4), "int_steps": 5}


def ball(shape: tuple[int, ...], centre: tuple[float, ...]) -> torch.Tensor:
    """A smooth bump of log density ``(1, 1, *shape)``."""
    mesh = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    far = sum((m - c) ** 2 for m, c in zip(mesh, centre, strict=True))
    return (4 * torch.exp(-torch.as_tensor(far) / 8))[None, None]


def atlas_network(shape: tuple[int, ...] = (16, 14, 15), factor: int = 2) -> AtlasNetwork:
    middle = tuple((n - 1) / 2 for n in shape)
    network = AtlasNetwork(ball(shape, middle), field_resolution=factor, **FEATURES)
    return network.eval()


def atlas_loss(d: int = 3, **changes: float) -> AtlasLoss:
    weights = {"smoothness_weight": 0.05, **changes}
    return AtlasLoss([2.0] * d, 2, window=5, scales=(1, 2), **weights)


@pytest.mark.parametrize("shape", [(16, 14, 15), (15, 14)])
def test_each_field_resamples_into_the_space_it_is_named_after(shape: tuple[int, ...]) -> None:
    """v = (2, 0, ..): the template lies 2 voxels further along the first axis than the subject."""
    network, d = atlas_network(shape), len(shape)
    velocity = torch.zeros(1, d, *network.reduced)
    velocity[:, 0] = 2
    whole = tuple(n + 4 for n in shape)
    crop = CropBox((2,) * d, tuple(n + 2 for n in shape))
    result = fields_of(network, velocity, crop, whole)
    assert result.to_subject.shape == result.to_template.shape == (1, d, *whole)
    assert not result.folds
    assert result.finite

    middle = tuple((n - 1) / 2 for n in whole)
    behind = (middle[0] - 2, *middle[1:])
    template, subject = ball(whole, middle), ball(whole, behind)
    inside: Any = (..., *(slice(3, n - 3) for n in whole))
    torch.testing.assert_close(
        warp(template, result.to_subject)[inside], subject[inside], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        result.subject_in_template(subject)[inside], template[inside], atol=1e-4, rtol=0
    )


def test_a_field_that_folds_or_is_not_finite_says_so() -> None:
    flat = torch.zeros(1, 3, 4, 4, 4)
    folded = flat.clone()
    folded[0, 0, 1], folded[0, 0, 2] = 2, -2
    broken = flat.clone()
    broken[0, 1, 2, 2, 2] = float("nan")
    for field, folds, finite in ((flat, False, True), (folded, True, True), (broken, True, False)):
        for fields in ((field, flat), (flat, field)):
            summary = {str(i): jacobian_summary(f[0]) for i, f in enumerate(fields)}
            result = Registration(*fields, summary)
            assert result.folds is folds
            assert result.finite is finite


# -- refinement ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 14, 15), (15, 14)])
def test_refinement_finds_a_move_of_two_voxels(shape: tuple[int, ...]) -> None:
    network, loss = atlas_network(shape), atlas_loss(len(shape))
    centre = tuple((n - 1) / 2 for n in shape)
    image = ball(shape, (centre[0] - 2, *centre[1:]))
    start = torch.zeros(1, len(shape), *network.reduced)
    with torch.no_grad():
        warped = network.warped_template(network.displacement(start))
        before = float(loss(warped, image, start)["loss"])
    result, value = refine_velocity(network, loss, image, start, 40)
    assert value < 0.5 * before
    body = image[0, 0] > 2
    moved = network.displacement(result)[0, :, body].mean(1)
    assert float(moved[0]) == pytest.approx(2, abs=0.5)
    assert moved[1:].abs().max() < 0.3


def test_refinement_is_never_worse_than_its_start_and_reports_its_loss() -> None:
    network, loss = atlas_network(), atlas_loss()
    image = ball((16, 14, 15), (6.5, 6.5, 7))
    torch.manual_seed(0)
    start = torch.randn(1, 3, *network.reduced)
    for lr, iterations in ((0.1, 5), (50.0, 5), (0.1, 0)):

        def cost(velocity: torch.Tensor) -> float:
            warped = network.warped_template(network.displacement(velocity))
            return float(loss(warped, image, velocity)["loss"].detach())

        result, value = refine_velocity(network, loss, image, start, iterations, lr)
        assert value == pytest.approx(cost(result), rel=1e-5)
        assert value <= cost(start) * (1 + 1e-6)
        if not iterations:
            assert torch.equal(result, start)


def test_refinement_changes_neither_network_nor_start() -> None:
    network, loss = atlas_network(), atlas_loss()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    start = torch.zeros(1, 3, *network.reduced)
    refine_velocity(network, loss, ball((16, 14, 15), (6, 6, 7)), start, 3)
    assert start.abs().max() == 0
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in network.parameters())


def test_an_estimate_is_the_networks_velocity_polished_where_asked() -> None:
    network, loss = atlas_network(), atlas_loss()
    image = ball((16, 14, 15), (6, 6.5, 7))
    with torch.no_grad():
        plain = network.velocity(image)
    torch.testing.assert_close(estimate_velocity(network, image), plain)
    polished = estimate_velocity(network, image, loss=loss, iterations=10)
    expected, _ = refine_velocity(network, loss, image, plain, 10)
    torch.testing.assert_close(polished, expected)
    assert (polished - plain).abs().max() > 0.1
    assert not polished.requires_grad


# -- unfolding -------------------------------------------------------------------------------


def smallest(network: AtlasNetwork, velocity: torch.Tensor) -> float:
    return min(jacobian_summary(u[0])["corner_min"] for u in network.displacements(velocity))


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("shape", [(16, 14, 15), (17, 15)])
def test_a_rough_velocity_is_smoothed_until_it_does_not_fold(
    shape: tuple[int, ...], factor: int
) -> None:
    network = atlas_network(shape, factor)
    generator = torch.Generator().manual_seed(0)
    velocity = 6 * torch.randn(1, len(shape), *network.reduced, generator=generator)
    assert smallest(network, velocity) < 0
    result = unfolded_velocity(network, velocity)
    assert smallest(network, result) >= 0.1


def test_a_gentle_velocity_is_left_alone_and_so_is_what_lies_far_from_a_fold() -> None:
    network = AtlasNetwork(np.zeros((1, 1, 40, 12)), field_resolution=1, **FEATURES).eval()
    gentle = 0.1 * torch.randn(1, 2, 40, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unfolded_velocity(network, gentle), gentle)
    rough = gentle.clone()
    rough[0, 0, 4:8, 5:7] = torch.tensor([9.0, -9.0, 9.0, -9.0]).view(-1, 1)
    assert smallest(network, rough) < 0
    result = unfolded_velocity(network, rough)
    assert smallest(network, result) >= 0.1
    assert torch.equal(result[:, :, 30:], rough[:, :, 30:])
