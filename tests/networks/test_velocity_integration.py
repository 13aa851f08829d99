"""Flows whose answer is known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import DVF2DDF
from scipy.linalg import expm

from scripts.networks import VelocityIntegration, enlarge, invert_displacement
from scripts.networks.grids import leading_block, reduced_shape
from scripts.spatial.warp import warp


def points(shape: tuple[int, ...]) -> torch.Tensor:
    """Voxel coordinates ``(d, *shape)``, float64."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def smooth_velocity(shape: tuple[int, ...], size: float, seed: int = 0) -> torch.Tensor:
    """A random smooth field that vanishes at the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, len(shape), *(4,) * len(shape), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    field = F.interpolate(coarse, shape, mode=mode, align_corners=True)
    hat = torch.ones(shape)
    for axis, n in enumerate(shape):
        line = torch.sin(torch.linspace(0, torch.pi, n)) ** 2
        hat = hat * line.view([-1 if a == axis else 1 for a in range(len(shape))])
    return size * field * hat


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2), (6, 5, 7)])
def test_it_is_monais_integration(shape: tuple[int, ...], steps: int, padding: str) -> None:
    ones = torch.ones(1, len(shape), *shape)
    torch.manual_seed(0)
    for velocity in (torch.zeros_like(ones), ones, torch.randn_like(ones)):
        ours = VelocityIntegration(steps, padding_mode=padding)(velocity, shape)
        theirs = DVF2DDF(num_steps=steps, padding_mode=padding)(velocity)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2])
def test_ones_that_leave_a_small_volume_fade_as_computed_by_hand(steps: int) -> None:
    """With zeros outside, one axis of two voxels: s squarings of v = 1, corner by corner."""
    flow = torch.full((1, 3, 2, 2, 2), 0.5**steps)
    for _ in range(steps):
        u = flow[0, 0]  # three components alike, by symmetry
        moved = torch.zeros_like(u)
        for corner in np.ndindex(2, 2, 2):
            for read in np.ndindex(2, 2, 2):
                apart = [abs(corner[a] + float(u[corner]) - read[a]) for a in range(3)]
                weight = np.prod([max(0.0, 1 - x) for x in apart])
                moved[corner] += float(weight) * u[read]
        flow = (u + moved).expand(1, 3, 2, 2, 2)
    result = VelocityIntegration(steps, padding_mode="zeros")(torch.ones(1, 3, 2, 2, 2), (2, 2, 2))
    torch.testing.assert_close(result, flow, atol=1e-5, rtol=0)


def test_no_steps_are_a_displacement_and_fewer_are_an_error() -> None:
    velocity = torch.randn(1, 2, 4, 5)
    assert torch.equal(VelocityIntegration(0)(velocity, (4, 5)), velocity)
    with pytest.raises(ValueError, match="int_steps must be at least 0, got -1"):
        VelocityIntegration(-1)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("int_steps", [0, 1, 7])
@pytest.mark.parametrize("shape", [(9, 11), (8, 9, 10)])
def test_a_constant_velocity_is_its_own_displacement(
    shape: tuple[int, ...], int_steps: int, factor: int
) -> None:
    move = torch.tensor([1.5, -2.25, 0.75])[: len(shape)].view(1, -1, *([1] * len(shape)))
    velocity = move.expand(1, len(shape), *reduced_shape(shape, factor))
    integration = VelocityIntegration(int_steps, factor)
    forward, inverse = integration.both(velocity, shape)
    assert torch.equal(integration.inverse(velocity, shape), inverse)
    assert forward.shape == (1, len(shape), *shape)
    torch.testing.assert_close(forward, move.expand_as(forward), atol=1e-5, rtol=0)
    torch.testing.assert_close(inverse, -move.expand_as(inverse), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(40, 48), (32, 36, 32)])
def test_a_rough_flow_is_off_by_hundredths_of_a_voxel(shape: tuple[int, ...]) -> None:
    velocity = smooth_velocity(reduced_shape(shape, 2), 4)
    integration = VelocityIntegration(9, 2)
    exact, rough = (integration(velocity, shape, rough=rough) for rough in (False, True))
    assert exact.norm(dim=1).max() > 3
    assert 0 < (rough - exact).norm(dim=1).max() < 0.08


def test_few_steps_are_as_many_for_a_rough_flow() -> None:
    velocity = smooth_velocity((12, 12), 2)
    integration = VelocityIntegration(2)
    assert torch.equal(integration(velocity, (12, 12), rough=True), integration(velocity, (12, 12)))


LINEAR_3D = np.array([[0.05, 0.12, 0.0], [-0.10, 0.02, 0.06], [0.03, -0.04, -0.08]])
LINEAR_2D = np.array([[0.06, 0.15], [-0.12, -0.04]])


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("matrix", [LINEAR_2D, LINEAR_3D], ids=["2d", "3d"])
def test_a_linear_velocity_flows_by_the_matrix_exponential(matrix: np.ndarray, factor: int) -> None:
    d = len(matrix)
    shape = (33,) * d if d == 2 else (25, 24, 27)
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
    offset = points(shape) - centre.view(-1, *([1] * d))
    # A reduced voxel's centre lies half-way between the full ones it covers.
    at = points(reduced_shape(shape, factor)) * factor + (factor - 1) / 2
    from_centre = at - centre.view(-1, *([1] * d))
    velocity = torch.einsum("ij,j...->i...", torch.tensor(matrix), from_centre)[None].float()

    forward, inverse = VelocityIntegration(8, factor).both(velocity, shape)
    inside: Any = (..., *(slice(7, n - 7) for n in shape))
    for result, sign in ((forward, 1), (inverse, -1)):
        flow = torch.tensor(expm(sign * matrix)) - torch.eye(d, dtype=torch.float64)
        expected = torch.einsum("ij,j...->i...", flow, offset)[None].float()
        apart = (result - expected)[inside].abs().max()
        assert apart < 4e-3 * expected[inside].abs().max()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9, 5), (8, 6, 4), (1, 2, 9)])
def test_enlarged_is_what_interpolate_makes_cut_to_shape(
    shape: tuple[int, ...], factor: int
) -> None:
    field = torch.randn(2, 3, *reduced_shape(shape, factor), requires_grad=True)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    whole = F.interpolate(field, scale_factor=factor, mode=mode, align_corners=False)
    expected = leading_block(whole, shape)
    result = enlarge(field, shape, factor)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(result)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), field)[0] for x in (result, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(21, 24), (17, 20, 15), (24, 26, 25)])
def test_forward_and_inverse_undo_each_other(shape: tuple[int, ...]) -> None:
    velocity = smooth_velocity(shape, 1.5)
    forward, inverse = VelocityIntegration(7).both(velocity, shape)
    assert forward.abs().max() > 1  # there is something to undo
    for outer, inner in ((forward, inverse), (inverse, forward)):
        # phi(psi(x)) - x = w(x) + u(x + w(x)); what is left is the interpolation of a field
        # with kinks on a small grid, a fifth of what the naive inverse -u leaves.
        residue = inner + warp(outer, inner, padding_mode="border")
        naive = -outer + warp(outer, -outer, padding_mode="border")
        assert residue.square().mean().sqrt() < 0.01
        assert residue.abs().max() < 0.17
        assert naive.square().mean().sqrt() > 0.025


@pytest.mark.parametrize("factor", [1, 2])
def test_without_integration_the_inverse_is_found_by_fixed_point(factor: int) -> None:
    shape = (17, 20, 15)
    velocity = smooth_velocity(reduced_shape(shape, factor), 1.0)
    forward, inverse = VelocityIntegration(0, factor).both(velocity, shape)
    torch.testing.assert_close(forward, enlarge(velocity, shape, factor))
    residue = inverse + warp(forward, inverse, padding_mode="border")
    assert forward.abs().max() > 0.5
    assert residue.abs().max() < 1e-3
    # -u is only the first guess, and not good enough for this field.
    assert (-forward + warp(forward, -forward, padding_mode="border")).abs().max() > 0.05


def test_fixed_point_of_a_linear_map_is_the_matrix_inverse() -> None:
    shape, matrix = (21, 21), np.array([[0.1, 0.15], [-0.2, 0.05]])
    offset = points(shape) - 10
    displacement = torch.einsum("ij,j...->i...", torch.tensor(matrix), offset)[None].float()
    expected = np.linalg.inv(np.eye(2) + matrix) - np.eye(2)
    inverse = torch.einsum("ij,j...->i...", torch.tensor(expected), offset)[None].float()
    result = invert_displacement(displacement)
    inside = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(result[inside], inverse[inside], atol=1e-4, rtol=0)


def test_half_resolution_is_full_resolution_without_half_a_voxel_lost() -> None:
    """Closed-form velocity sampled on both grids; the tolerance sees a half-voxel shift."""
    shape = (30, 28, 32)

    def velocity(at: torch.Tensor) -> torch.Tensor:
        wave = 2 * torch.sin(2 * torch.pi * (at - 14) / 90)
        return torch.stack([wave[1], wave[2], -wave[0]])[None].float()

    inside: Any = (..., *(slice(4, n - 4) for n in shape))
    full = VelocityIntegration(7, 1)(velocity(points(shape)), shape)
    reduced = velocity(points(reduced_shape(shape, 2)) * 2 + 0.5)
    half = VelocityIntegration(7, 2)(reduced, shape)
    assert full[inside].abs().max() > 1
    assert (half - full)[inside].abs().max() < 0.015

    squared = VelocityIntegration(7, 1)(reduced / 2, reduced.shape[2:]) * 2
    corners = F.interpolate(squared, shape, mode="trilinear", align_corners=True)
    assert (corners - full)[inside].abs().max() > 0.03


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(7, 9), (5, 9, 11), (8, 12, 13)])
def test_enlarging_keeps_a_ramp_and_crops_to_any_size(shape: tuple[int, ...], factor: int) -> None:
    """Each full voxel of a linear ramp gets its own coordinate, the outermost ones aside."""
    at = points(reduced_shape(shape, factor)) * factor + (factor - 1) / 2
    result = enlarge(at[None].float(), shape, factor)
    assert result.shape[2:] == shape
    for axis, n in enumerate(shape):
        rim = factor // 2
        inside = result[0, axis].narrow(axis, rim, n - 2 * rim)
        expected = points(shape)[axis].float().narrow(axis, rim, n - 2 * rim)
        torch.testing.assert_close(inside, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(13, 11), (9, 8, 11)])
@pytest.mark.parametrize("int_steps", [1, 7])
def test_full_resolution_is_monais_dvf2ddf(shape: tuple[int, ...], int_steps: int) -> None:
    velocity = smooth_velocity(shape, 3.0) + 0.3
    theirs = DVF2DDF(num_steps=int_steps, mode="bilinear", padding_mode="border")(velocity)
    torch.testing.assert_close(
        VelocityIntegration(int_steps)(velocity, shape), theirs, atol=1e-4, rtol=0
    )


def test_gradients_flow_through_integration_and_enlarging() -> None:
    velocity = smooth_velocity((5, 6, 5), 0.5).requires_grad_(True)
    VelocityIntegration(3, 2)(velocity, (9, 11, 10)).square().sum().backward()
    assert velocity.grad is not None
    assert torch.isfinite(velocity.grad).all()
    assert velocity.grad.abs().max() > 0
