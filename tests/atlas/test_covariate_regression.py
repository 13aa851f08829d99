"""Regression on covariates: closed forms, and slopes that chance alone makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.atlas.covariate_regression import CovariateRegression, shrunken


def gathered(images: torch.Tensor, design: torch.Tensor, weights: torch.Tensor | None = None):
    fit = CovariateRegression(
        design.shape[1], images.shape[1], images.shape[2], weighted=weights is not None
    )
    for i, image in enumerate(images):
        fit.add(image, design[i], None if weights is None else weights[i])
    return fit


def case(n: int = 9, p: int = 2, channels: int = 3, points: int = 5):
    torch.manual_seed(0)
    design = torch.randn(n, p)
    return design - design.mean(0), torch.randn(n, channels, points), torch.rand(n, points) + 0.1


def test_slopes_and_variances_are_those_of_numpys_least_squares() -> None:
    design, images, weights = case()
    fit = gathered(images, design, weights)
    slopes, variance = fit.solve()
    x = np.c_[np.ones(9), design.numpy()]
    for point in range(5):
        root = np.sqrt(weights[:, point].numpy())[:, None]
        y = images[:, :, point].numpy() * root
        expected, residual, _, _ = np.linalg.lstsq(x * root, y, rcond=None)
        np.testing.assert_allclose(slopes[:, :, point], expected[1:], rtol=1e-4, atol=1e-5)
        inverse = np.linalg.inv((x * root).T @ (x * root))
        chance = residual.sum() / (9 - 3) * np.diag(inverse)[1:]
        np.testing.assert_allclose(variance[:, point], chance, rtol=1e-4)
        np.testing.assert_allclose(
            fit.intercept(slopes)[:, point], expected[0], rtol=1e-4, atol=1e-5
        )


def test_without_slopes_the_intercept_is_the_weighted_mean() -> None:
    design, images, weights = case()
    fit = gathered(images, design, weights)
    mean = (weights[:, None] * images).sum(0) / weights.sum(0)
    result = fit.intercept(torch.zeros(2, 3, 5, dtype=torch.float64))
    torch.testing.assert_close(result.float(), mean, rtol=1e-4, atol=1e-5)


def test_the_order_of_subjects_does_not_matter() -> None:
    design, images, weights = case()
    one = gathered(images, design, weights).solve()
    other = gathered(images.flip(0), design.flip(0), weights.flip(0)).solve()
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_where_there_are_no_data_slopes_and_variances_are_zero() -> None:
    design, images, weights = case()
    images[..., 2], weights[:, 2] = 0, 0
    fit = gathered(images, design, weights)
    slopes, variance = fit.solve()
    assert not slopes[..., 2].any()
    assert not variance[:, 2].any()
    assert not fit.intercept(slopes)[:, 2].any()


def test_an_exact_relation_is_left_as_it_is() -> None:
    slopes = torch.randn(1, 3, 6, 7, 5)
    kept = shrunken(slopes, torch.zeros(1, 6, 7, 5), 3)
    torch.testing.assert_close(kept, slopes)


@pytest.mark.parametrize("window", [1, 3])
def test_a_slope_of_known_uncertainty_is_scaled_by_steins_factor(window: int) -> None:
    slopes = torch.full((1, 2, 6, 7, 5), 3.0)  # length squared 18
    result = shrunken(slopes, torch.full((1, 6, 7, 5), 6.0), window)
    torch.testing.assert_close(result, slopes * (1 - 6 / 18))
    assert not shrunken(slopes, torch.full((1, 6, 7, 5), 20.0), window).any()


def test_slopes_of_chance_shrink_and_a_true_one_stays() -> None:
    """A covariate that does nothing, and one that moves half of the image."""
    torch.manual_seed(0)
    n, shape = 12, (3, 12, 12, 12)
    design = torch.randn(n, 2)
    design = design - design.mean(0)
    images = torch.randn(n, 3, 12**3)
    effect = torch.zeros(shape)
    effect[0, :6] = 2.0
    images += design[:, 1, None, None] * effect.flatten(1)
    slopes, variance = gathered(images, design).solve()
    slopes, variance = slopes.reshape(-1, *shape), variance.reshape(-1, *shape[1:])
    result = shrunken(slopes, variance, 5)
    sizes = [float(x.square().mean()) for x in (slopes[0], result[0])]
    assert sizes[1] < 0.1 * sizes[0]
    true = result[1, 0, :5].mean()
    assert 1.6 < float(true) < 2.4
    assert float(result[1, :, 8:].square().mean()) < 0.2 * float(slopes[1, :, 8:].square().mean())
