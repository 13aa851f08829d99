"""The demo cohort's displacements: closed forms, inverses, no folds."""

import numpy as np
import pytest
from scipy.linalg import expm

from scripts.metrics import inverse_consistency
from scripts.phantom.deformation import ControlGrid


def velocity_around(grid, matrix):
    """A linear velocity around the middle of the grid, (3, x, y, z)."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    middle = (np.array(grid.shape) - 1) / 2
    return np.moveaxis((points - middle) @ matrix.T, -1, 0), points - middle


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[0, -0.5, 0], [0.5, 0, 0], [0, 0, 0]]),  # a rotation by half a radian
        np.diag([0.2, -0.2, 0.0]),  # stretching
    ],
)
def test_the_exponential_of_a_linear_velocity_is_the_matrix_exponential(matrix):
    grid = ControlGrid((48, 48, 48), 2.5)
    velocity, offset = velocity_around(grid, matrix)
    expected = np.moveaxis(offset @ (expm(matrix) - np.eye(3)).T, -1, 0)
    # Trajectories from the inner half never meet the border, where the field can't be known.
    inner = (slice(None), *[slice(n // 4, -(n // 4)) for n in grid.shape])
    error = np.abs(grid.integrate(velocity) - expected)[inner]
    assert error.max() < 5e-3


def test_a_zero_velocity_moves_nothing():
    grid = ControlGrid((20, 24, 20), 5.0)
    assert not grid.expand(grid.integrate(np.zeros((3, *grid.shape)))).any()


@pytest.mark.parametrize("shape", [(40, 44, 36), (33, 37, 41)])
def test_expanding_keeps_a_linear_field_and_turns_it_into_full_voxels(shape):
    grid = ControlGrid(shape, 2.5)
    slope = np.array([0.04, -0.03, 0.02])
    coarse = np.meshgrid(*[np.arange(n) * s for n, s in zip(grid.shape, grid.step, strict=True)],
                         indexing="ij")  # fmt: skip
    field = np.stack([m * x / s for m, x, s in zip(slope, coarse, grid.step, strict=True)])
    full = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    expected = np.stack([m * x for m, x in zip(slope, full, strict=True)])
    np.testing.assert_allclose(grid.expand(field), expected, atol=1e-3)


def test_noise_vanishes_at_every_face():
    grid = ControlGrid((40, 44, 40), 4.0)
    noise = grid.noise(np.random.default_rng(0))
    assert noise.std() > 0.1
    for axis in (1, 2, 3):
        for end in (0, -1):
            assert not noise.take(end, axis=axis).any()


def test_the_negated_velocity_integrates_to_the_inverse():
    grid = ControlGrid((48, 48, 48), 3.0)
    velocity = 0.75 * grid.noise(np.random.default_rng(1))  # as strong as the cohort's
    forward, backward = (
        grid.expand(grid.integrate(velocity)),
        grid.expand(grid.integrate(-velocity)),
    )
    assert np.sqrt((forward**2).sum(0)).max() > 3
    assert inverse_consistency(forward, backward) < 0.05
    assert inverse_consistency(forward, -forward) > 0.3  # merely negating it isn't the inverse
