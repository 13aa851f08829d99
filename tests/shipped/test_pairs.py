"""Generated pairs: the same for a seed, and really moved by the flow that they tell of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.errors import ConfigurationError
from scripts.networks.integration import VelocityIntegration
from scripts.shipped.bundles import moved_density, random_bundles
from scripts.shipped.flows import random_velocity
from scripts.shipped.noise import smooth_noise
from scripts.shipped.pairs import GeneratedPair, PairGenerator
from scripts.spatial.warp import warp

SMALL = ((24, 28, 22),)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def moved(pair: GeneratedPair, sign: float = 1.0) -> torch.Tensor:
    """The moving image by the flow of the velocity, or of its opposite."""
    flow = VelocityIntegration(7, 2)(sign * pair.velocity, pair.moving.shape[2:])
    return warp(pair.moving, flow, padding_mode="border")


def test_a_pair_follows_from_seed_and_index_alone() -> None:
    one, other = PairGenerator(3, SMALL), PairGenerator(3, SMALL)
    wanted = [one[i] for i in range(4)]
    for index in (2, 0, 3, 1):
        result = other[index]
        for name in ("moving", "fixed", "velocity", "tissue"):
            assert torch.equal(getattr(result, name), getattr(wanted[index], name))
    assert not torch.equal(one[0].fixed, one[1].fixed)
    assert not torch.equal(one[0].velocity, PairGenerator(4, SMALL)[0].velocity)


def test_pairs_are_of_both_kinds_not_negative_finite_and_of_one_shape() -> None:
    pairs = [PairGenerator(0, SMALL)[i] for i in range(16)]
    assert {pair.kind for pair in pairs} == {"bundles", "images"}
    for pair in pairs:
        assert pair.moving.shape == pair.fixed.shape == pair.tissue.shape == (1, 1, *SMALL[0])
        assert pair.velocity.shape == (1, 3, 12, 14, 11)
        assert np.prod(pair.size) == pytest.approx(1)
        for image in (pair.moving, pair.fixed):
            assert torch.isfinite(image).all()
            assert image.min() >= 0 < image.max()
        assert pair.tissue.any()
    assert any(pair.size != (1, 1, 1) for pair in pairs)


@pytest.mark.parametrize("kind", ["bundles", "images"])
def test_pairs_of_one_kind_are_those_of_both_and_others_with_the_same_move(kind: str) -> None:
    both, alone = PairGenerator(0, SMALL), PairGenerator(0, SMALL, [kind])
    kept = 0
    for index in range(6):
        one, other = both[index], alone[index]
        assert other.kind == kind
        assert torch.equal(one.velocity, other.velocity)
        assert one.size == other.size
        if one.kind == kind:
            assert torch.equal(one.moving, other.moving)
            assert torch.equal(one.fixed, other.fixed)
            kept += 1
    assert 0 < kept < 6


@pytest.mark.parametrize("kinds", [[], ["stars"], "images", ["images", 3]])
def test_kinds_that_dont_exist_are_refused(kinds: Any) -> None:
    with pytest.raises(ConfigurationError, match="one or both of bundles, images"):
        PairGenerator(0, SMALL, kinds)


def test_the_true_flow_and_not_its_inverse_brings_moving_onto_fixed() -> None:
    gains: dict[str, list[tuple[float, float]]] = {"bundles": [], "images": []}
    for index in range(14):
        pair = PairGenerator(1, ((32, 32, 32),))[index]
        if float(pair.velocity.square().sum(1).mean().sqrt()) > 1.5:
            before, after, inverse = (
                correlation(image, pair.fixed)
                for image in (pair.moving, moved(pair), moved(pair, -1))
            )
            gains[pair.kind].append((after - before, after - inverse))
    for result in gains.values():
        assert len(result) > 2
        assert min(np.mean(result, axis=0)) > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_density_moves_as_its_streamlines_do(axis: int) -> None:
    shape, size = (30, 32, 34), [1.0, 1.0, 1.0]
    bundles = random_bundles(np.random.default_rng(0), shape, 4, mirrored=False)
    still = torch.zeros(1, 3, 15, 16, 17)
    move = still.clone()
    move[:, axis] = 3.0
    there, shifted = (
        moved_density(bundles, 400, shape, size, m, np.random.default_rng(1)) for m in (still, move)
    )
    inside = there.narrow(axis, 2, shape[axis] - 8)
    assert torch.equal(shifted.narrow(axis, 5, shape[axis] - 8), inside)
    assert float(there.max()) <= 100  # per cent of the streamlines


def test_mirrored_bundles_leave_a_mirrored_density() -> None:
    shape = (33, 32, 30)
    rng = np.random.default_rng(0)
    bundle = random_bundles(rng, (32, 32, 30), 1, mirrored=False)[0]
    both = [bundle, bundle.mirrored(16.0)]
    left, right = (
        moved_density([b], 4000, shape, [1, 1, 1], torch.zeros(1, 3, 17, 16, 15),
                      np.random.default_rng(0))
        for b in both
    )  # fmt: skip
    assert correlation(left, right.flip(0)) > 0.97
    assert correlation(left, right) < 0.9


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_a_velocity_has_the_length_that_is_asked_for_in_the_world(size: tuple[float, ...]) -> None:
    result = random_velocity(np.random.default_rng(0), (40, 36, 32), size, 2.5)
    world = result[0] * torch.tensor(size).view(3, 1, 1, 1)
    assert float(world.square().sum(0).mean().sqrt()) == pytest.approx(2.5, rel=1e-5)


def test_noise_is_as_smooth_as_asked_and_coarse_grids_dont_show() -> None:
    rng = np.random.default_rng(0)
    for sigma in (2.0, 6.0):
        noise = smooth_noise(rng, 6, (64, 64, 64), (sigma,) * 3)
        # The correlation of smoothed white noise at a distance h is exp(-h^2 / (4 sigma^2)).
        near = noise.roll(2, 1)[:, 10:-10], noise[:, 10:-10]
        assert correlation(*near) == pytest.approx(float(np.exp(-1 / sigma**2)), abs=0.06)
        assert noise.flatten(1).std(1).numpy() == pytest.approx(np.ones(6), rel=1e-4)


def test_nothing_of_the_generator_comes_from_the_phantom() -> None:
    room = Path(__file__).resolve().parents[2] / "scripts" / "shipped"
    texts = [path.read_text(encoding="utf-8") for path in room.glob("*.py")]
    assert len(texts) > 5
    assert not [text for text in texts if "scripts.phantom" in text]
