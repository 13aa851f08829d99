"""Smoothness of linear fields is the norm of their matrix; centrality is a squared mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.losses import CentralityLoss, SmoothnessLoss


def linear_field(matrix: np.ndarray, spacing: tuple[float, ...], factor: int) -> torch.Tensor:
    """u = A x in millimetres, given in voxels of the full grid on a reduced one."""
    d = len(spacing)
    shape = (5, 6, 4)[:d]
    mesh = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) * factor
    sizes = np.array(spacing).reshape(-1, *([1] * d))
    world = np.tensordot(matrix, mesh * sizes, axes=1)
    return torch.tensor(world / sizes, dtype=torch.float32)[None]


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0), (2.0, 0.5), (1.0, 1.0, 1.0), (2.5, 2.5, 2.5), (1.0, 2.0, 3.5)]
)
def test_a_linear_field_costs_its_squared_frobenius_norm(
    spacing: tuple[float, ...], factor: int
) -> None:
    d = len(spacing)
    matrix = np.random.default_rng(d).normal(size=(d, d))
    result = SmoothnessLoss(spacing, factor)(linear_field(matrix, spacing, factor))
    assert float(result) == pytest.approx(float((matrix**2).sum()), rel=1e-4)


def test_a_rotation_of_the_axes_changes_nothing() -> None:
    field = torch.randn(1, 3, 5, 6, 7)
    turned = field[:, [2, 0, 1]].permute(0, 1, 4, 2, 3)
    a = SmoothnessLoss((1.0, 2.0, 3.0))(field)
    b = SmoothnessLoss((3.0, 1.0, 2.0))(turned)
    torch.testing.assert_close(a, b)


def test_constants_are_free_and_a_checkerboard_is_penalised() -> None:
    loss = SmoothnessLoss((1.0, 1.0, 1.0))
    assert float(loss(torch.full((1, 3, 5, 5, 5), 7.0))) == 0
    signs = torch.tensor([1.0, -1.0]).repeat(3)
    board = (signs.view(-1, 1, 1) * signs.view(1, -1, 1) * signs.view(1, 1, -1)).expand(
        1, 3, 6, 6, 6
    )
    # Every neighbour differs by 2: 3 components, 3 directions, squared.
    assert float(loss(board)) == pytest.approx(36)


def test_it_is_a_mean_over_the_batch() -> None:
    loss = SmoothnessLoss((1.0, 1.0))
    a, b = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(loss(torch.cat([a, b])), (loss(a) + loss(b)) / 2)


def test_an_axis_of_one_voxel_has_no_gradient() -> None:
    loss = SmoothnessLoss((1.0, 1.0, 1.0))
    flat = torch.randn(1, 3, 5, 6, 1)
    assert torch.isfinite(loss(flat))
    torch.testing.assert_close(loss(flat.expand(1, 3, 5, 6, 4)), loss(flat))


def test_centralitys_value_is_the_mean_fields_squared_length() -> None:
    mean = torch.randn(2, 4, 5)
    expected = mean.square().sum(0).mean()
    result = CentralityLoss()(torch.randn(3, 2, 4, 5), mean)
    torch.testing.assert_close(result, expected)


def test_centralitys_gradient_is_that_of_the_squared_length() -> None:
    """d mean_x |m|^2 / du_b = 2 m / (B * voxels)."""
    mean, field = torch.randn(2, 4, 5), torch.randn(3, 2, 4, 5, requires_grad=True)
    CentralityLoss()(field, mean).backward()
    expected = (2 * mean / (3 * 20)).expand(3, -1, -1, -1)
    torch.testing.assert_close(field.grad, expected)


def test_centrality_drives_the_mean_to_zero_and_leaves_what_differs() -> None:
    torch.manual_seed(0)
    field = torch.nn.Parameter(torch.randn(4, 2, 3, 3) + 2)
    spread = (field - field.mean(0)).detach().clone()
    optimizer = torch.optim.SGD([field], lr=2.0)
    for _ in range(60):
        optimizer.zero_grad()
        CentralityLoss()(field, field.mean(0)).backward()
        optimizer.step()
    assert field.mean(0).abs().max() < 1e-2
    torch.testing.assert_close((field - field.mean(0)).detach(), spread, atol=1e-4, rtol=0)
