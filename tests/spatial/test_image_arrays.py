"""Arrays and paths as images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.spatial.deformation import Deformation
from scripts.spatial.image_arrays import (
    check_affine,
    grid_of,
    grid_of_image,
    transforms_of,
    values_of,
    volume_of,
    write_array,
)

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 3, 0, -7], [0, 0, 1.5, 2], [0, 0, 0, 1]])
IMAGE = np.random.default_rng(0).random((4, 5, 6))


def test_a_file_gives_the_array_that_was_written(tmp_path: Path):
    path = tmp_path / "image.nii.gz"
    write_array(path, IMAGE, AFFINE)
    from_file, grid = volume_of("image", path, None)
    from_array, same = volume_of("image", IMAGE, AFFINE)
    np.testing.assert_allclose(from_file, from_array, rtol=1e-6)
    assert grid.same_as(same) is None
    assert grid_of_image("image", path, None).same_as(same) is None
    np.testing.assert_allclose(values_of("image", path), IMAGE, rtol=1e-6)


def test_a_plane_gets_a_third_axis_and_labels_keep_their_type():
    labels = np.arange(6, dtype=np.int16).reshape(2, 3)
    volume, grid = volume_of("labels", labels, AFFINE, labels=True)
    assert (volume.shape, volume.dtype, grid.shape) == ((1, 2, 3, 1), np.int16, (2, 3, 1))


@pytest.mark.parametrize(
    ("image", "affine", "message"),
    [
        (np.zeros(3), AFFINE, r"image of shape \(3,\): must be \(X, Y\) or \(X, Y, Z\)"),
        (np.zeros((0, 3, 3)), AFFINE, "must be"),
        (np.full((2, 2, 2), np.nan), AFFINE, "contains values that aren't finite"),
        (IMAGE, None, r"affine of image = None: must be \(4, 4\)"),
        (IMAGE, np.eye(3), r"affine of image = an array of shape \(3, 3\)"),
    ],
)
def test_refused(image: np.ndarray, affine: np.ndarray | None, message: str):
    with pytest.raises(ValueError, match=message):
        volume_of("image", image, affine)


def test_a_grid_needs_three_axes():
    with pytest.raises(ValueError, match="three axes"):
        grid_of((4, 5), check_affine("image", AFFINE))


def test_points_pass_through_a_deformation_s_displacement_before_its_matrix():
    displacement = np.zeros((3, 4, 5, 6))
    displacement[0] = 0.5
    matrix = np.diag([2.0, 2, 2, 1])
    chain = transforms_of(Deformation(matrix, displacement, -displacement, np.eye(4), 1.0))
    point = np.array([[1.0], [1], [1]])
    for transform in chain:
        point = transform.apply(point)
    np.testing.assert_allclose(point[:, 0], [3, 2, 2])


def test_a_matrix_must_have_four_rows_and_columns():
    with pytest.raises(ValueError, match="affine of a transform"):
        transforms_of(np.eye(3))
