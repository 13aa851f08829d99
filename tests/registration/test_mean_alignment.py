"""A cohort to its own mean: transforms found, mean centred, nothing of the order of subjects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.registration.affine import AffineRefinement
from scripts.registration.group_mean import group_mean
from scripts.registration.images import WorldImage
from scripts.registration.mean_alignment import MeanAlignment, common_grid, mean_log
from scripts.spatial.affine_parameters import Frame, matrix_of
from scripts.spatial.resampling import resample_by_matrix


@pytest.fixture(scope="module")
def cohort(bumps, fixed_grid, moving_grid) -> tuple[list[WorldImage], np.ndarray]:
    """Subjects on two grids, and the true maps of the object's points to each subject's."""
    frame = Frame.of_grid(*fixed_grid)
    drawn = torch.rand(4, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5
    truth = matrix_of(drawn * torch.tensor([0.6] * 3 + [0.3] * 3 + [0.2] * 6), "affine", frame)
    truth = truth.numpy()
    grids = [fixed_grid, moving_grid] * 2
    # subject(y) = object(truth^-1 y)
    images = [bumps(*grid, np.linalg.inv(m)) for grid, m in zip(grids, truth, strict=True)]
    return images, truth


@pytest.fixture(scope="module")
def found(cohort):
    refine = AffineRefinement("affine", levels=(2,), iterations=40, similarity="correlation")
    return MeanAlignment(refine, rounds=2, margin=2)(cohort[0])


def test_transforms_between_subjects_are_the_true_ones(cohort, found) -> None:
    _, truth = cohort
    for i, j in ((0, 1), (2, 3), (0, 3)):
        wanted = truth[j] @ np.linalg.inv(truth[i])
        seen = found.matrices[j] @ np.linalg.inv(found.matrices[i])
        points = np.array([[8, 0, 0, 1], [0, 6, 0, 1], [0, 0, 5, 1], [-6, 3, 2, 1]]).T
        assert np.linalg.norm((wanted - seen) @ points, axis=0).max() < 1.2  # mm


def test_the_mean_transform_is_the_identity(found) -> None:
    assert found.residual < 1e-10
    assert mean_log(found.matrices) < 1e-10
    np.testing.assert_allclose(group_mean(found.matrices), np.eye(4), atol=1e-8)


def test_aligned_images_agree_and_lie_inside_the_grid(cohort, found) -> None:
    images, _ = cohort
    assert min(found.correlation) > 0.97
    assert found.template.shape[1:] == found.grid.shape
    for image, matrix in zip(images, found.matrices, strict=True):
        moved = resample_by_matrix(
            image.values, image.affine, torch.from_numpy(matrix), found.grid.affine,
            found.grid.shape,
        )  # fmt: skip
        border = [moved.select(2 + axis, at) for axis in range(3) for at in (0, -1)]
        assert max(float(side.abs().max()) for side in border) < 0.1 * float(moved.max())


def test_the_grid_is_cubic_and_keeps_the_handedness_of_the_images(cohort) -> None:
    images, _ = cohort
    flipped = [
        WorldImage(
            i.values.flip(2),
            i.affine
            @ np.array([[-1.0, 0, 0, i.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        )
        for i in images
    ]
    still = np.stack([np.eye(4)] * len(images))
    for some in (images, flipped):
        grid = common_grid(some, still, None, 3)
        gram = grid.affine[:3, :3].T @ grid.affine[:3, :3]
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(3), atol=1e-9)
    assert np.linalg.det(grid.affine) < 0 < np.linalg.det(common_grid(images, still, 2.0, 0).affine)


def test_transforms_half_a_turn_apart_have_no_mean(cohort) -> None:
    from scripts.registration.mean_alignment import centred

    with pytest.raises(ValueError, match="logarithm"):
        centred(np.stack([np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])]))
