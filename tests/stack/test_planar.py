"""Transforms of a plane: the same as the house's affine parameters, exact derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.spatial.affine_parameters import Frame, matrix_of
from scripts.stack.planar import PlanarModel, Plane, corner_distance

PLANE = Plane((60, 100), (3.0, 0.5))
FAMILIES = {"rigid": "rigid", "similarity": "rigid_isotropic", "affine": "affine"}


def some_parameters(model: PlanarModel, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, model.count)


@pytest.mark.parametrize("transformation", FAMILIES)
def test_a_matrix_is_that_of_the_affine_parameters(transformation: str) -> None:
    model = PlanarModel(transformation)
    values = some_parameters(model)
    # The reference acts in millimetres from the first pixel; x is their first axis.
    affine = np.diag([0.5, 3.0, 1.0, 1.0])
    frame = Frame.of_grid(affine, (100, 60))
    wanted = matrix_of(torch.from_numpy(values)[None], FAMILIES[transformation], frame)[0].numpy()
    centre = np.eye(4)
    centre[:3, 3] = frame.centre.numpy()
    local = np.linalg.inv(centre) @ wanted @ centre
    ours = model.matrix(values, PLANE)
    np.testing.assert_allclose(ours[:2, :2], local[:2, :2], atol=1e-12)
    np.testing.assert_allclose(ours[:2, 2], local[:2, 3], atol=1e-12)


@pytest.mark.parametrize("transformation", FAMILIES)
def test_derivatives_are_those_of_the_matrix(transformation: str) -> None:
    model = PlanarModel(transformation)
    at, step = some_parameters(model), 1e-6
    for k, slope in enumerate(model.derivative(at, PLANE)):
        by = np.zeros(model.count)
        by[k] = step
        change = model.matrix(at + by, PLANE) - model.matrix(at - by, PLANE)
        np.testing.assert_allclose(slope, change[:2] / (2 * step), atol=1e-6)


@pytest.mark.parametrize(
    "options", [("rigid",), ("similarity",), ("affine",), ("affine", True, False)]
)
def test_parameters_come_back(options: tuple) -> None:
    model = PlanarModel(*options)
    values = some_parameters(model)
    back = model.parameters(model.matrix(values, PLANE), PLANE)
    np.testing.assert_allclose(back, values, atol=1e-12)


def test_rigid_keeps_lengths_in_millimetres_whatever_the_pixels_are() -> None:
    matrix = PlanarModel("rigid").matrix(np.array([0.4, 0.1, -0.2]), PLANE)
    assert np.abs(np.linalg.svd(matrix[:2, :2])[1] - 1).max() < 1e-12
    pixels = PLANE.pixel_matrix(matrix)
    assert np.abs(np.linalg.svd(pixels[:2, :2])[1] - 1).max() > 0.1
    np.testing.assert_allclose(PLANE.physical_matrix(pixels), matrix, atol=1e-12)


def test_switched_off_scaling_and_shear_stay_exactly_away() -> None:
    unscaled = PlanarModel("affine", scaling=False)
    assert unscaled.names == ("rotation", "translation_x", "translation_y", "shear")
    assert np.linalg.det(unscaled.matrix(np.array([0.3, 0, 0, 0.2]), PLANE)) == pytest.approx(1)
    with pytest.raises(ValueError, match="must be one of rigid, similarity, affine, got 'elastic'"):
        PlanarModel("elastic")


def test_a_rigid_map_near_a_sheared_one_is_the_nearest_rotation() -> None:
    sheared = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    model = PlanarModel("rigid")
    left, _, right = np.linalg.svd(sheared[:2, :2])
    result = model.matrix(model.parameters(sheared, PLANE), PLANE)
    np.testing.assert_allclose(result[:2, :2], left @ right, atol=1e-12)
    with pytest.raises(ValueError, match="mirrors or collapses"):
        model.parameters(np.diag([-1.0, 1.0, 1.0]), PLANE)


def test_distance_of_maps_is_counted_in_pixels() -> None:
    plane = Plane((10, 10), (4.0, 4.0))
    moved = np.eye(3)
    moved[0, 2] = 8.0
    assert corner_distance(np.eye(3), moved, plane) == pytest.approx(2.0)
