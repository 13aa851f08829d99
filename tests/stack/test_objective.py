"""Losses of a pair: closed forms, exact gradients, and what is outside has no weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.stack import objective as module
from scripts.stack.objective import LOSSES, Objective, _gradient
from scripts.stack.planar import PlanarModel, Plane
from scripts.stack.pyramid import Pyramid

PLANE = Plane((48, 64), (2.0, 1.0))


def smooth_pair(plane: Plane = PLANE) -> tuple[Pyramid, Pyramid]:
    rows, columns = np.mgrid[: plane.shape[0], : plane.shape[1]]
    one = 0.5 + 0.2 * np.sin(rows / 5) + 0.2 * np.cos(columns / 7 + rows / 11)
    other = 0.5 + 0.2 * np.sin((rows + 1) / 5) + 0.15 * np.cos((columns - 2) / 7 + rows / 11)
    return Pyramid(one.astype(np.float32), plane, (1,)), Pyramid(
        other.astype(np.float32), plane, (1,)
    )


def moved(rows: float, columns: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = columns * PLANE.spacing[1], rows * PLANE.spacing[0]
    return matrix


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_loss(loss: str) -> None:
    fixed, moving = smooth_pair()
    inner = np.zeros(PLANE.shape, dtype=bool)
    inner[6:-6, 6:-6] = True  # so that the overlap stays the same
    fixed = Pyramid(fixed.image[0, 0].numpy(), PLANE, (1,), inner)
    model, measure = PlanarModel("affine"), Objective(loss)
    at = np.array([0.01, 0.013, -0.017, 0.01, -0.02, 0.01])
    here = measure(fixed[0], moving[0], model.matrix(at, PLANE))
    chain = measure.chain(model.derivative(at, PLANE), fixed[0])
    step = 2e-4
    for k, slope in enumerate(chain.T @ here.gradient):
        by = np.zeros(6)
        by[k] = step
        ahead = measure(fixed[0], moving[0], model.matrix(at + by, PLANE)).loss
        behind = measure(fixed[0], moving[0], model.matrix(at - by, PLANE)).loss
        # Up to what linear interpolation does to derivatives.
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=0.15, abs=6e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_sections_lose_nothing(loss: str) -> None:
    fixed, _ = smooth_pair()
    at = Objective(loss)(fixed[0], fixed[0], np.eye(3))
    assert at.loss == pytest.approx(0, abs=1e-5)
    assert at.overlap == 1.0
    assert at.correlation == pytest.approx(1, abs=1e-6)


def test_closed_forms_over_the_overlap_alone() -> None:
    fixed, moving = smooth_pair()
    f, m = fixed.image[0, 0, 4:, :-6].numpy(), moving.image[0, 0, :-4, 6:].numpy()
    matrix = moved(-4, 6)  # the fixed pixel (4, 0) coincides with the moving one (0, 6)
    at = {loss: Objective(loss)(fixed[0], moving[0], matrix) for loss in ("ncc", "mse", "mae")}
    assert at["ncc"].overlap == pytest.approx(f.size / 48 / 64)
    assert at["ncc"].loss == pytest.approx(1 - np.corrcoef(f.ravel(), m.ravel())[0, 1], abs=1e-5)
    assert at["mse"].loss == pytest.approx(((f - m) ** 2).mean(), rel=1e-4)
    assert at["mae"].loss == pytest.approx(np.abs(f - m).mean(), rel=1e-3)


def test_structural_similarity_is_the_textbooks() -> None:
    fixed, moving = smooth_pair()
    f, m = (one.image[0, 0].double().numpy() for one in (fixed, moving))
    values = []
    for row in range(48 - 10):
        for column in range(64 - 10):
            a, b = (one[row : row + 11, column : column + 11] for one in (f, m))
            common = ((a - a.mean()) * (b - b.mean())).mean()
            value = (2 * a.mean() * b.mean() + 1e-4) * (2 * common + 9e-4)
            values.append(
                value / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4))
            )
    result = Objective("ssim")(fixed[0], moving[0], np.eye(3)).loss
    assert result == pytest.approx(1 - np.mean(values), abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_under_a_quarter_of_overlap_a_map_is_refused(loss: str) -> None:
    fixed, moving = smooth_pair()
    assert np.isfinite(Objective(loss)(fixed[0], moving[0], moved(30, 0)).loss)
    assert Objective(loss)(fixed[0], moving[0], moved(37, 0)).loss == np.inf


def test_unknown_pixels_count_for_nothing() -> None:
    fixed, moving = smooth_pair()
    known = np.ones(PLANE.shape, dtype=bool)
    known[:, 40:] = False
    spoilt = fixed.image[0, 0].numpy().copy()
    spoilt[:, 40:] = 9.0
    half = Pyramid(spoilt, PLANE, (1,), known)
    at = Objective("mse")(half[0], moving[0], np.eye(3))
    f, m = fixed.image[0, 0, :, :40].numpy(), moving.image[0, 0, :, :40].numpy()
    assert at.overlap == pytest.approx(40 / 64)
    assert at.loss == pytest.approx(((f - m) ** 2).mean(), rel=1e-4)


def test_bands_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving = smooth_pair()
    whole = Objective("ncc")(fixed[0], moving[0], moved(1.3, 2.1))
    monkeypatch.setattr(module, "_BAND", 64 * 7)
    parts = Objective("ncc")(fixed[0], moving[0], moved(1.3, 2.1))
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
    np.testing.assert_allclose(parts.curvature, whole.curvature, rtol=1e-3, atol=1e-6)


def test_a_level_lies_where_its_pixels_do() -> None:
    rows, columns = np.mgrid[:50, :67].astype(np.float32)
    plane = Plane((50, 67), (2.0, 1.0))
    level = Pyramid(columns, plane, (4,))[0]
    assert level.shape == (12, 16)
    # A ramp is its own mean: a reduced pixel has the value at its centre.
    where = (level.values[0, 0, 5, 8].item() - 33.0) * plane.spacing[1]
    assert where == pytest.approx(level.origin[0] + 8 * level.step[0], abs=1e-4)
    down = Pyramid(rows, plane, (4,))[0].values[0, 0, 5, 8].item()
    assert (down - 24.5) * 2.0 == pytest.approx(level.origin[1] + 5 * level.step[1], abs=1e-4)


@pytest.mark.parametrize(("first", "last"), [(0, 4), (3, 9), (8, 12)])
def test_a_ramp_has_its_slopes_for_any_map(first: int, last: int) -> None:
    linear = np.array([[0.9, -0.4], [0.5, 1.2]])
    down, across = np.mgrid[:12, :9].astype(np.float64)
    x, y = np.tensordot(linear, np.stack([across, down]), 1)
    out = torch.empty(2, last - first, 9)
    _gradient(torch.from_numpy(3 * x - 5 * y).float(), first, last, linear, out)
    rows = slice(1 if first == 0 else 0, -1 if last == 12 else None)  # no difference at the border
    for result, wanted in zip(out, (3.0, -5.0), strict=True):
        np.testing.assert_allclose(result[rows, 1:-1], wanted, atol=1e-4)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of ncc, mse, mae, ssim, got 'nmi'"):
        Objective("nmi")
