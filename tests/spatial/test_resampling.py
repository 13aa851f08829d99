"""Resampling by world matrices, against scipy's in world points and against closed forms."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.spatial.affine_parameters import Frame, matrix_of
from scripts.spatial.grid import Grid
from scripts.spatial.resampling import resample_by_matrix, voxel_matrix
from scripts.spatial.transforms import AffineTransform, resample

SOURCE = np.array(
    [[0.0, -1.5, 0.2, 20.0], [2.0, 0.1, 0.0, -14.0], [0.1, 0.0, 2.5, -9.0], [0, 0, 0, 1]]
)
WANTED = np.array(
    [[1.7, 0.2, 0.0, -12.0], [-0.2, 1.7, 0.3, -13.0], [0.0, -0.3, 2.2, -8.0], [0, 0, 0, 1]]
)
SHAPES = ((14, 17, 9), (12, 16, 8))


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, *SHAPES[0], generator=torch.Generator().manual_seed(1))


def matrices() -> torch.Tensor:
    frame = Frame.of_grid(WANTED, SHAPES[1])
    drawn = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) - 0.5
    return matrix_of(0.5 * drawn, "affine", frame)


@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_resampling_of_points_in_millimetres(image: torch.Tensor, batch: int) -> None:
    found = resample_by_matrix(image[:batch], SOURCE, matrices()[:batch], WANTED, SHAPES[1])
    grids = [
        Grid(shape, affine, nib.Nifti1Header())
        for shape, affine in zip(SHAPES, (SOURCE, WANTED), strict=True)
    ]
    for one, matrix, result in zip(image, matrices(), found, strict=False):
        chain = [AffineTransform(matrix.numpy())]
        expected = resample(one.numpy().astype(float), grids[0], chain, grids[1])
        assert expected.max() > 0.3
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


def test_the_identity_returns_the_very_values(image: torch.Tensor) -> None:
    identity = torch.eye(4, dtype=torch.float64)
    assert torch.equal(resample_by_matrix(image, SOURCE, identity, SOURCE, SHAPES[0]), image)


def test_the_identity_with_gradients_returns_the_values_to_rounding(image: torch.Tensor) -> None:
    identity = torch.eye(4, dtype=torch.float64, requires_grad=True)
    moved = resample_by_matrix(image, SOURCE, identity, SOURCE, SHAPES[0])
    torch.testing.assert_close(moved.detach(), image, atol=2e-5, rtol=0)
    moved.sum().backward()
    assert identity.grad is not None
    assert float(identity.grad.abs().max()) > 0


def test_whole_voxels_shift_and_what_lies_outside_is_zero(image: torch.Tensor) -> None:
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.from_numpy(SOURCE[:3, :3] @ [2, 0, -1])
    moved = resample_by_matrix(image, SOURCE, shift, SOURCE, SHAPES[0])
    expected = torch.zeros_like(image)
    expected[:, :, :-2, :, 1:] = image[:, :, 2:, :, :-1]
    torch.testing.assert_close(moved, expected, atol=2e-5, rtol=0)


def test_each_image_of_a_batch_may_have_its_own_grid(image: torch.Tensor) -> None:
    finer = SOURCE @ np.diag([0.5, 0.5, 0.5, 1.0])
    affines = torch.from_numpy(np.stack([SOURCE, finer]))
    together = resample_by_matrix(image, affines, matrices(), WANTED, SHAPES[1])
    for i, affine in enumerate(affines):
        alone = resample_by_matrix(
            image[i : i + 1], affine, matrices()[i : i + 1], WANTED, SHAPES[1]
        )
        torch.testing.assert_close(together[i : i + 1], alone)


def test_there_and_back_is_the_voxels_identity() -> None:
    there = voxel_matrix(matrices(), SOURCE, WANTED)
    back = voxel_matrix(torch.linalg.inv(matrices()), WANTED, SOURCE)
    identity = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    torch.testing.assert_close(there @ back, identity, atol=1e-9, rtol=0)


def test_planes_and_single_slices() -> None:
    plane = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(3))
    frame = Frame.of_grid(np.eye(4), (9, 11))
    quarter = matrix_of(torch.tensor([[np.pi / 2, 0.0, 0.0]]), "rigid", frame)
    turned = resample_by_matrix(plane, np.eye(4), quarter, np.eye(4), (9, 11))
    # The wanted point c + (x, y) reads c + (-y, x).
    expected = torch.zeros_like(plane)
    for i in range(9):
        for j in range(11):
            at = 4 - (j - 5), 5 + (i - 4)
            if 0 <= at[0] < 9 and 0 <= at[1] < 11:
                expected[0, 0, i, j] = plane[0, 0, at[0], at[1]]
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)
    slab = resample_by_matrix(plane[..., None], np.eye(4), quarter, np.eye(4), (9, 11, 1))
    torch.testing.assert_close(slab[..., 0], expected, atol=1e-5, rtol=0)


def test_labels_are_read_by_their_nearest_voxel() -> None:
    labels = torch.arange(2 * 3 * 4).reshape(1, 1, 2, 3, 4)
    shift = torch.eye(4)
    shift[0, 3] = 0.4
    assert torch.equal(
        resample_by_matrix(labels, np.eye(4), shift, np.eye(4), (2, 3, 4), mode="nearest"), labels
    )
    with pytest.raises(ValueError, match="mode 'nearest'"):
        resample_by_matrix(labels, np.eye(4), shift, np.eye(4), (2, 3, 4))


def test_other_axes_and_singular_affines_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="grid of 2 axes"):
        resample_by_matrix(image, SOURCE, torch.eye(4), WANTED, (5, 5))
    with pytest.raises(ValueError, match="can't be inverted"):
        resample_by_matrix(image, np.zeros((4, 4)), torch.eye(4), WANTED, SHAPES[1])


def test_gradients_are_those_of_differences() -> None:
    grid = torch.linspace(-1, 1, 12, dtype=torch.float64)
    x, y, z = torch.meshgrid(grid, grid, grid, indexing="ij")
    blob = torch.exp(-3 * (x**2 + 2 * y**2 + 0.5 * z**2))[None, None]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([0.3, -0.2, 0.4])
    matrix.requires_grad_()

    def one_number(m: torch.Tensor) -> torch.Tensor:
        moved = resample_by_matrix(blob, np.eye(4), m, np.eye(4), (12, 12, 12))
        return (moved * blob.square()).sum()

    assert torch.autograd.gradcheck(one_number, matrix, eps=1e-5, atol=1e-4)
