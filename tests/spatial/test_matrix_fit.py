"""Matrices from keypoints: closed forms, symmetry, gradients, and what too few points give."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.spatial.matrix_fit import LEVELS, effective_points, fit_matrix, nearest_rotation

FAMILIES = LEVELS[2:]


def rotation(generator: torch.Generator, d: int) -> torch.Tensor:
    return nearest_rotation(torch.randn(d, d, generator=generator, dtype=torch.float64))


def member(family: str, d: int, generator: torch.Generator) -> torch.Tensor:
    """A random matrix of a family, translation included."""
    turn = rotation(generator, d)
    scale = torch.rand(d, generator=generator, dtype=torch.float64) + 0.6
    linear = {
        "rigid": turn,
        "rigid_isotropic": turn * scale[0],
        "rigid_anisotropic": turn * scale,
        "affine": turn * scale @ rotation(generator, d) * (scale.flip(0) + 0.2),
    }[family]
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:d, :d] = linear
    matrix[:d, d] = 20 * torch.randn(d, generator=generator, dtype=torch.float64)
    return matrix


def moved(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    d = points.shape[-1]
    return points @ matrix[..., :d, :d].mT + matrix[..., :d, d].unsqueeze(-2)


def cloud(d: int, generator: torch.Generator, count: int = 12, batch: int = 1) -> torch.Tensor:
    return 30 * torch.randn(batch, count, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_points_that_were_moved_by_a_member_give_it_back(family, d, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix, points = member(family, d, generator), cloud(d, generator)
    weights = torch.rand(1, 12, generator=generator, dtype=torch.float64) + 0.1
    fit = fit_matrix(points, moved(matrix, points), weights, family, ridge=0)
    assert LEVELS[int(fit.level)] == family
    torch.testing.assert_close(fit.matrix[0], matrix, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("family", ["rigid", "rigid_isotropic", "affine"])
def test_swapping_the_sets_inverts_the_matrix_also_with_noise(family, d):
    generator = torch.Generator().manual_seed(3)
    points = cloud(d, generator, batch=4)
    others = moved(member(family, d, generator), points) + cloud(d, generator, batch=4) / 6
    there = fit_matrix(points, others, family=family, ridge=1e-3).matrix
    back = fit_matrix(others, points, family=family, ridge=1e-3).matrix
    eye = torch.eye(d + 1, dtype=torch.float64).expand_as(there)
    torch.testing.assert_close(there @ back, eye, rtol=1e-9, atol=1e-7)


def test_a_larger_family_fits_noisy_points_no_worse():
    generator = torch.Generator().manual_seed(4)
    points = cloud(3, generator, 40)
    others = moved(member("affine", 3, generator), points) + cloud(3, generator, 40) / 100
    errors = [
        float((moved(fit_matrix(points, others, family=f).matrix, points) - others).norm())
        for f in FAMILIES
    ]
    assert errors == sorted(errors, reverse=True)


def test_weights_of_zero_leave_outliers_out():
    generator = torch.Generator().manual_seed(5)
    matrix, points = member("affine", 3, generator), cloud(3, generator)
    others = moved(matrix, points)
    others[:, 7:9] += 100
    weights = torch.ones(1, 12)
    weights[:, 7:9] = 0
    fit = fit_matrix(points, others, weights, ridge=0)
    torch.testing.assert_close(fit.matrix[0], matrix, rtol=1e-8, atol=1e-7)


def test_mirrored_points_give_a_rotation_and_never_a_reflection():
    generator = torch.Generator().manual_seed(6)
    points = cloud(3, generator)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0])
    for family in ("rigid", "rigid_isotropic", "rigid_anisotropic"):
        assert float(torch.linalg.det(fit_matrix(points, mirrored, family=family).matrix)) > 0
    fit = fit_matrix(points, mirrored, family="affine")
    assert LEVELS[int(fit.level)] == "rigid_anisotropic"


@pytest.mark.parametrize(
    ("d", "points", "level"),
    [
        (3, torch.zeros(1, 5, 3), "translation"),  # in one place
        (3, torch.arange(5.0).view(1, 5, 1) * torch.ones(3), "translation"),  # on a line
        (3, torch.eye(3)[None] * 9, "rigid_isotropic"),  # three points
        (2, torch.eye(2)[None] * 9, "rigid_isotropic"),  # two points
        (
            2,
            torch.tensor([[[0.0, 0], [9, 0], [4, 0]]]),
            "rigid_isotropic",
        ),  # on a line, in the plane
        (3, torch.tensor([[[0.0, 0, 1], [9, 0, 1], [0, 9, 1], [9, 9, 1]]]), "rigid_isotropic"),
        (3, torch.tensor([[[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]]]), "affine"),
    ],
    ids=["place", "line", "three", "two-2d", "line-2d", "plane", "tetrahedron"],
)
def test_poor_clouds_fall_back_to_what_they_determine_and_say_so(caplog, d, points, level):
    generator = torch.Generator().manual_seed(7)
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:d, :d], matrix[:d, d] = rotation(generator, d), 5.0
    target = moved(matrix, points.double())
    if level == "translation":
        target = points.double() + 5
    with caplog.at_level(logging.WARNING):
        fit = fit_matrix(points, target, family="affine")
    assert LEVELS[int(fit.level)] == level
    assert (f"fitted {level}" in caplog.text) == (level != "affine")
    assert torch.isfinite(fit.matrix).all()
    torch.testing.assert_close(moved(fit.matrix, points.double()), target, rtol=0, atol=1e-4)


def test_no_weight_at_all_is_the_identity_and_others_of_the_batch_are_fitted(caplog):
    generator = torch.Generator().manual_seed(8)
    matrix, points = member("rigid", 3, generator), cloud(3, generator, batch=2)
    weights = torch.ones(2, 12)
    weights[0] = 0
    with caplog.at_level(logging.WARNING):
        fit = fit_matrix(points, moved(matrix, points), weights, "rigid")
    assert [LEVELS[i] for i in fit.level] == ["identity", "rigid"]
    torch.testing.assert_close(fit.matrix[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(fit.matrix[1], matrix, rtol=1e-8, atol=1e-7)
    assert "fitted identity" in caplog.text


def test_one_heavy_point_counts_as_one():
    weights = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1e6, 1, 1, 1], [0, 0, 0, 0]])
    counted = effective_points(weights)
    torch.testing.assert_close(counted, torch.tensor([4.0, 1, 1, 0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_formula(family):
    generator = torch.Generator().manual_seed(9)
    points = cloud(3, generator, 6) / 30
    others = (moved(member("affine", 3, generator), points) / 20).requires_grad_()
    weights = (torch.rand(1, 6, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    points.requires_grad_()

    def fitted(p: torch.Tensor, q: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return fit_matrix(p, q, w, family, ridge=1e-3).matrix

    assert torch.autograd.gradcheck(fitted, (points, others, weights), atol=1e-5, rtol=1e-3)


def test_a_rotation_by_equal_singular_values_has_a_finite_gradient():
    matrix = torch.eye(3, dtype=torch.float64, requires_grad=True)
    (nearest_rotation(matrix)[0, 1] * 2).backward()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 1], expected[1, 0] = 1, -1  # antisymmetric part, halved
    torch.testing.assert_close(matrix.grad, expected)


def test_half_a_turn_is_found():
    angle = math.pi * 0.999
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        dtype=torch.float64,
    )
    points = cloud(3, torch.Generator().manual_seed(10))
    fit = fit_matrix(points, points @ turn.mT, family="rigid")
    torch.testing.assert_close(fit.matrix[0, :3, :3], turn)


@pytest.mark.parametrize(
    ("source", "target", "weights", "family", "message"),
    [
        ((1, 4, 3), (1, 5, 3), None, "rigid", "two sets"),
        ((4, 3), (4, 3), None, "rigid", "two sets"),
        ((1, 4, 3), (1, 4, 3), (1, 5), "rigid", "weights must have shape"),
        ((1, 4, 3), (1, 4, 3), None, "similar", "family must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(source, target, weights, family, message):
    given_weights = None if weights is None else torch.ones(weights)
    with pytest.raises(ValueError, match=message):
        fit_matrix(torch.ones(source), torch.ones(target), given_weights, family)
