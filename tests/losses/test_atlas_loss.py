"""The weighted sum: each term is there with its weight, and only then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scripts.losses import AtlasLoss, LocalCorrelationLoss, PresenceLoss, SmoothnessLoss
from scripts.networks.grids import averaged

TERMS = ("similarity", "presence", "smoothness", "centrality")


def example(d: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shape = (9, 10, 7)[:d]
    return {
        "warped": torch.rand(2, 2, *shape) * 3,
        "image": torch.rand(2, 2, *shape) * 3,
        "velocity": torch.randn(2, d, *(-(-n // 2) for n in shape)),
        "mean_velocity": torch.randn(d, *(-(-n // 2) for n in shape)),
    }


@pytest.mark.parametrize("d", [2, 3])
def test_the_sum_is_weighted_and_the_terms_are_not(d: int) -> None:
    weights = {"similarity": 1.5, "presence": 0.25, "smoothness": 0.5, "centrality": 2.0}
    changes: dict[str, Any] = {f"{name}_weight": value for name, value in weights.items()}
    given = example(d)
    terms = AtlasLoss([2.0] * d, 2, window=3, scales=(1, 2), **changes)(**given)
    assert set(terms) == {"loss", *TERMS}
    expected = sum(weights[name] * terms[name] for name in TERMS)
    torch.testing.assert_close(terms["loss"], expected)
    smooth = SmoothnessLoss([2.0] * d, 2)(given["velocity"])
    torch.testing.assert_close(terms["smoothness"], smooth)


@pytest.mark.parametrize("left", TERMS)
def test_terms_of_weight_zero_are_not_computed(left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {f"{name}_weight": float(name == left) for name in TERMS}
    loss = AtlasLoss([1.0] * 3, 2, window=3, scales=(1,), **changes)

    def never(*inputs: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed")

    for name in TERMS:
        if name != left:
            monkeypatch.setattr(getattr(loss, name), "forward", never)
    terms = loss(**example())
    assert set(terms) == {"loss", left}
    torch.testing.assert_close(terms["loss"], terms[left])


def test_no_centrality_without_a_running_mean() -> None:
    given = example()
    loss = AtlasLoss([1.0] * 3, 2, centrality_weight=1.0, window=3)
    assert "centrality" in loss(**given)
    del given["mean_velocity"]
    assert "centrality" not in loss(**given)


def test_scales_are_means_over_a_pyramid() -> None:
    given = example()
    scales = (1, 2, 4)
    terms = AtlasLoss([1.0] * 3, 2, window=3, scales=scales)(**given)
    pyramid = [(averaged(given["warped"], s), averaged(given["image"], s)) for s in scales]
    for name, term in (("similarity", LocalCorrelationLoss(3)), ("presence", PresenceLoss())):
        each = torch.stack([term(m, f) for m, f in pyramid])
        assert each.std() > 1e-3
        torch.testing.assert_close(terms[name], each.mean())


def test_coarse_levels_see_a_move_that_the_fine_one_is_blind_to() -> None:
    """Thin lines 3 voxels apart: no overlap, no slope, but at a quarter of the resolution."""
    fixed, near, far = (torch.zeros(1, 1, 32, 32) for _ in range(3))
    fixed[..., 12, :], near[..., 15, :], far[..., 28, :] = 5, 5, 5
    velocity = torch.zeros(1, 2, 32, 32)
    kind: dict[str, Any] = {f"{name}_weight": float(name == "presence") for name in TERMS}
    fine = AtlasLoss([1.0] * 2, scales=(1,), **kind)
    deep = AtlasLoss([1.0] * 2, scales=(1, 2, 4), **kind)
    assert float(fine(near, fixed, velocity)["loss"]) == float(fine(far, fixed, velocity)["loss"])
    assert float(deep(near, fixed, velocity)["loss"]) < 0.75
    assert float(deep(far, fixed, velocity)["loss"]) == 1


def test_averages_of_blocks_count_only_the_voxels_of_a_cut_block() -> None:
    image = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 3)
    result = averaged(image, 2)
    assert result.shape == (1, 1, 3, 2)
    torch.testing.assert_close(result[0, 0, :, 1], torch.tensor([0.5, 2.5, 4.0]))
    assert averaged(image, 1) is image


@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 2, 2), (3, 9)])
def test_images_smaller_than_windows_and_factors_are_fine(shape: tuple[int, ...]) -> None:
    loss = AtlasLoss([1.0] * len(shape), window=9, scales=(1, 2, 4))
    image = torch.rand(1, 1, *shape)
    velocity = torch.zeros(1, len(shape), *shape, requires_grad=True)
    terms = loss(image.clone().requires_grad_(True), image, velocity)
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])


@pytest.mark.parametrize("masked", [False, True])
def test_a_prepared_target_changes_no_bit_of_the_loss_and_its_gradient(masked: bool) -> None:
    torch.manual_seed(0)
    shape = (1, 1, 9, 8, 10)
    image = torch.rand(shape) * (torch.rand(shape) > 0.4)
    valid = torch.rand(shape) > 0.3 if masked else None
    loss = AtlasLoss([2.0] * 3, 2, window=3, scales=(1, 2))
    target = loss.target(image, valid)
    for seed in (1, 2):  # one target serves several images
        torch.manual_seed(seed)
        warped = torch.rand(shape).requires_grad_()
        velocity = torch.rand(1, 3, 5, 4, 5).requires_grad_()
        result = []
        for given in ({}, {"target": target}):
            total = loss(warped, image, velocity, valid=valid, **given)["loss"]
            result.append((total, *torch.autograd.grad(total, (warped, velocity))))
        for plain, prepared in zip(*result, strict=True):
            assert torch.equal(plain, prepared)


def test_a_term_from_elsewhere_gets_the_images_of_a_target_alone() -> None:
    image = torch.rand(1, 1, 6, 6, 6)
    loss = AtlasLoss([1.0] * 3, similarity=torch.nn.MSELoss(), scales=(1, 2))
    given = (torch.rand_like(image), image, torch.zeros(1, 3, 6, 6, 6))
    assert torch.equal(loss(*given)["loss"], loss(*given, target=loss.target(image))["loss"])
