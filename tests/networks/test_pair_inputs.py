"""Inputs of pairs: closed forms on ramps, invariances, the move that correlates best."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.errors import ConfigurationError
from scripts.networks.pair_inputs import PairForces, pair_inputs


def ramp(slope: float, shift: float = 0.0, axis: int = 0) -> torch.Tensor:
    """``slope * (x + shift)`` along an axis, ``(1, 1, 12, 12, 12)``."""
    line = slope * (torch.arange(12.0) + shift)
    return line.view([-1 if a == axis else 1 for a in range(3)]).expand(1, 1, 12, 12, 12)


def shown(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    forces = PairForces()
    return forces(forces.copies(moving), forces.copies(fixed))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0.3, -0.8])
def test_on_a_ramp_the_force_is_the_shift_up_to_its_damping(axis: int, shift: float) -> None:
    slope = 0.2
    result = shown(ramp(slope, axis=axis), ramp(slope, shift, axis))[0, 4:7]
    step = slope * shift
    expected = torch.zeros(3)
    expected[axis] = 2 * step * slope / (slope**2 + step**2 + 1e-4)
    torch.testing.assert_close(result, expected.view(3, 1, 1, 1).expand_as(result))


def test_equal_images_have_no_forces_and_both_are_shown() -> None:
    image = torch.rand(1, 1, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    result = shown(image, image)
    assert result.shape == (1, 13, 8, 9, 7) == (1, PairForces.channels(3), 8, 9, 7)
    assert (result[:, 4:] == 0).all()
    assert torch.equal(result[:, 0], image[:, 0])
    assert torch.equal(result[:, 1], image[:, 0])
    assert torch.equal(result[:, 2], result[:, 3])


def test_swapping_the_images_turns_the_forces_round() -> None:
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, 1, 8, 9, 7, generator=rng) for _ in range(2))
    forward, backward = shown(one, other), shown(other, one)
    torch.testing.assert_close(forward[:, 4:], -backward[:, 4:])
    assert forward[:, 4:].abs().max() > 0.1


def test_normalised_copies_dont_know_gain_and_offset() -> None:
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    forces = PairForces()
    plain, changed = forces.copies(image), forces.copies(3 * image + 2)
    torch.testing.assert_close(plain[:, 1:], changed[:, 1:], atol=5e-3, rtol=0)
    assert plain[:, 1].std() > 0.9
    flat = forces.copies(torch.full((1, 1, 9, 9, 9), 0.7))
    assert flat[:, 1:].abs().max() < 0.05


def test_planes_and_single_slices_have_forces_of_their_own() -> None:
    forces = PairForces()
    plane = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    result = forces(forces.copies(plane), forces.copies(plane.flip(2)))
    assert result.shape == (2, PairForces.channels(2), 9, 8) == (2, 10, 9, 8)
    slab = torch.rand(1, 1, 9, 8, 1, generator=torch.Generator().manual_seed(0))
    thin = forces(forces.copies(slab), forces.copies(slab.flip(2)))
    assert (thin[:, 6] == 0).all()  # along an axis of one voxel nothing has a slope
    assert torch.isfinite(thin).all()


@pytest.mark.parametrize("shape", [(11, 6, 5), (1, 7, 6), (11, 9)])
def test_slabs_of_any_size_make_the_same_and_so_does_a_followed_gradient(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    forces, rng = PairForces(), torch.Generator().manual_seed(0)
    one, other = (forces.copies(torch.rand(2, 1, *shape, generator=rng)) for _ in range(2))
    whole = forces(one.clone().requires_grad_(True), other)
    assert whole.requires_grad
    for planes in (1, 2, 3, 20):
        monkeypatch.setattr("scripts.networks.pair_inputs._SLAB", planes * math.prod(shape[1:]))
        assert torch.equal(forces(one, other), whole)


def seen(name: str, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    inputs = pair_inputs(name)
    return inputs(inputs.copies(moving), inputs.copies(fixed))


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8)])
def test_each_kind_of_inputs_begins_with_those_of_the_kind_before(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 1, *shape, generator=rng) for _ in range(2))
    result = [seen(name, one, other) for name in ("pair", "copies", "forces", "costs")]
    counts = [2, 4, 13, 40] if len(shape) == 3 else [2, 4, 10, 19]
    assert [made.shape[1] for made in result] == counts
    for name, made in zip(("pair", "copies", "forces", "costs"), result, strict=True):
        assert pair_inputs(name).channels(len(shape)) == made.shape[1]
        assert torch.equal(made, result[-1][:, : made.shape[1]])


@pytest.mark.parametrize("move", [(1, 0, 0), (0, -1, 1), (-1, 1, -1), (0, 0, 0)])
def test_images_correlate_best_after_the_move_between_them(move: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    # The fixed image at x is the moving one at x + move.
    fixed = image.roll([-step for step in move], (2, 3, 4))
    costs = seen("costs", image, fixed)[0, 13:, 6:-6, 6:-6, 6:-6]
    place = 9 * (move[0] + 1) + 3 * (move[1] + 1) + move[2] + 1
    assert (costs.argmax(0) == place).all()
    # Normalised copies have a local variance of about 1.
    assert float(costs[place].mean()) == pytest.approx(1, abs=0.1)
    assert float(costs.mean(tuple(range(1, 4))).sort().values[-2]) < 0.2


def test_inputs_that_dont_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be one of pair, copies, forces, costs"):
        pair_inputs("stars")
