"""Images in one another's contrast: exact for functions, weighted, of any values."""

from __future__ import annotations

import pytest
import torch

from scripts.registration.contrast import ContrastMatch, matches_better, similarities


def ramp(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 1, 12, 14, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gain", [-2.0, 1.0, 3.0])
def test_a_linear_change_of_contrast_is_undone(gain: float) -> None:
    moving = ramp()
    fixed = 5 + gain * moving
    matched = ContrastMatch.between(moving, fixed)(moving)
    assert float((matched - fixed).abs().mean()) < 0.02 * abs(gain)


def test_means_are_those_of_the_counted_voxels() -> None:
    moving = torch.cat([torch.zeros(50), torch.ones(50)]).view(1, 1, 10, 10, 1)
    fixed = torch.cat([torch.full((25,), 2.0), torch.full((25,), 4.0), torch.full((50,), 7.0)])
    fixed = fixed.view(1, 1, 10, 10, 1)
    result = ContrastMatch.between(moving, fixed)
    assert float(result.means[0]) == pytest.approx(3.0)
    assert float(result.means[-1]) == pytest.approx(7.0)
    weight = (fixed != 4).float()
    assert float(ContrastMatch.between(moving, fixed, weight).means[0]) == pytest.approx(2.0)


def test_levels_that_nothing_has_lie_between_their_neighbours() -> None:
    moving = torch.cat([torch.zeros(50), torch.ones(50)])
    result = ContrastMatch.between(moving, 1 - moving)
    assert float(result(torch.tensor([0.5]))) == pytest.approx(0.5, abs=1e-3)
    assert float(result(torch.tensor([9.0]))) == pytest.approx(0.0, abs=1e-3)  # beyond the last


def test_an_image_without_contrast_gives_one_value() -> None:
    flat = torch.full((1, 1, 4, 4, 4), 3.0)
    matched = ContrastMatch.between(flat, ramp()[..., :4, :4, :4])(flat)
    assert torch.isfinite(matched).all() and float(matched.std()) == 0


def test_only_images_of_another_contrast_are_matched() -> None:
    image = ramp()
    noisy = image + 0.1 * ramp(1)
    assert not matches_better(image, noisy)
    assert not matches_better(image, 4 * noisy + 1)
    assert matches_better(1 - image, noisy)
    assert matches_better(image, (image - 0.5).abs())


@pytest.mark.parametrize("gain", [1.0, -1.0], ids=["same contrast", "inverted"])
def test_the_version_that_lies_nearer_is_more_similar_in_any_contrast(gain: float) -> None:
    axes = [torch.linspace(-1, 1, n) for n in (20, 22, 18)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")

    def ball(shift: float) -> torch.Tensor:
        away = ((x - shift) ** 2 + y**2 + z**2).sqrt()
        return torch.sigmoid((0.5 - away) * 20)[None, None]

    far, near = gain * ball(0.5), gain * ball(0.1)
    for before, after in ((far, near), (near, far)):
        first, second = similarities(before, after, ball(0.0))
        assert (second > first) is (after is near)
    same, again = similarities(near, near, ball(0.0))
    assert same == again
