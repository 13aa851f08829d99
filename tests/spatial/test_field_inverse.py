"""Fields inverted at points, against flows whose inverse is known."""

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.field_inverse import InverseFieldTransform
from scripts.spatial.grid import Grid
from scripts.spatial.transforms import FieldTransform

SHAPE = (20, 24, 18)
AFFINE = np.array([[-2.0, 0, 0.1, 30], [0, 2.2, 0, -20], [0.1, 0, 1.9, -10], [0, 0, 0, 1]])


def field_of(displacement) -> FieldTransform:
    """A field whose displacement, mm, is a function of world points ``(3, N)``."""
    indices = np.mgrid[tuple(slice(n) for n in SHAPE)].reshape(3, -1)
    points = AFFINE[:3, :3] @ indices + AFFINE[:3, 3:]
    header = nib.Nifti1Header()
    return FieldTransform(displacement(points).reshape(3, *SHAPE), Grid(SHAPE, AFFINE, header))


def inner_points(count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    voxels = rng.uniform(5, np.array(SHAPE)[:, None] - 6, (3, count))
    return AFFINE[:3, :3] @ voxels + AFFINE[:3, 3:]


def test_an_affine_as_a_field_is_inverted_exactly():
    # Linear interpolation of a linear displacement is exact, so the closed form holds.
    matrix = np.array([[0.2, 0.1, 0.0], [-0.1, 0.1, 0.05], [0.0, 0.1, -0.2]])
    field = field_of(lambda points: matrix @ points + np.array([[1.0], [2.0], [-1.0]]))
    x = inner_points()
    y = x + matrix @ x + np.array([[1.0], [2.0], [-1.0]])
    assert np.abs(InverseFieldTransform(field).apply(y) - x).max() < 5e-3


def test_strong_compression_needs_newton_and_is_solved():
    # x' = x - 1.3 (x - c) r(x) along one axis diverges as a fixed point (slope beyond -1 ... -2).
    matrix = np.diag([1.5, 0.0, 0.0])
    field = field_of(lambda points: matrix @ points)
    x = inner_points() * np.array([[0.3], [1], [1]])
    y = x + matrix @ x
    assert np.abs(InverseFieldTransform(field).apply(y) - x).max() < 5e-3


def test_there_and_back_is_the_identity_for_a_wavy_field():
    field = field_of(lambda p: 2.0 * np.sin(p[[1, 2, 0]] / 9.0))
    inverse = InverseFieldTransform(field)
    points = inner_points()
    assert np.abs(field.apply(inverse.apply(points)) - points).max() <= 1.1e-3
    assert np.abs(inverse.apply(field.apply(points)) - points).max() <= 5e-3
    assert ~inverse is field


def test_a_field_that_folds_is_refused():
    field = field_of(lambda points: -points)  # everything to the origin
    with pytest.raises(CohortError, match=r"can't be inverted at .* it folds there"):
        InverseFieldTransform(field).apply(inner_points())


def test_points_at_the_rim_where_a_field_jumps_are_refused_with_that_reason():
    field = field_of(lambda points: np.zeros_like(points) + 4.0)
    rim = inner_points()
    rim[0] = AFFINE[0, 3] + AFFINE[0, 0] * (SHAPE[0] - 1) + 0.5  # nothing comes here from outside
    with pytest.raises(CohortError, match="or they are at its rim, where it ends with a jump"):
        InverseFieldTransform(field).apply(rim)
