"""Affines as files: read back by this bundle, and by ANTs where it is installed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import CohortError
from scripts.spatial.affine_parameters import Frame, matrix_of
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.transform_files import (
    read_affine,
    transform_names,
    write_affine_files,
    write_itk_affine,
)

SHAPE = (14, 12, 10)
AFFINE = np.diag([-1.5, 2.0, 1.8, 1.0])


@pytest.fixture
def matrix() -> np.ndarray:
    parameters = torch.tensor(
        [[0.3, -0.2, 0.4, 0.1, -0.2, 0.15, 0.1, -0.1, 0.05, 0.1, 0.0, -0.1]], dtype=torch.float64
    )
    return matrix_of(parameters, "affine", Frame.of_grid(AFFINE, SHAPE))[0].numpy()


def test_both_directions_come_back_from_both_kinds_of_text(tmp_path: Path, matrix) -> None:
    write_affine_files(tmp_path, "s", "native", "aligned", matrix)
    itk, plain = transform_names("s", "native", "aligned")
    np.testing.assert_allclose(read_affine(tmp_path / itk).matrix, matrix, atol=1e-12)
    np.testing.assert_allclose(np.loadtxt(tmp_path / plain), matrix, atol=1e-12)
    for name in transform_names("s", "aligned", "native"):
        result = read_affine(tmp_path / name).matrix
        np.testing.assert_allclose(result, np.linalg.inv(matrix), atol=1e-12)


def test_a_plane_is_written_in_two_dimensions(tmp_path: Path) -> None:
    frame = Frame.of_grid(np.eye(4), (9, 7))
    matrix = matrix_of(torch.tensor([[0.4, 0.1, 0.2]]), "rigid", frame)[0].numpy()
    write_itk_affine(tmp_path / "x.txt", matrix, 2)
    assert "double_2_2" in (tmp_path / "x.txt").read_text()
    np.testing.assert_allclose(read_affine(tmp_path / "x.txt").matrix, matrix, atol=1e-12)
    matrix[2, 3] = 1.0
    with pytest.raises(ValueError, match="changes z"):
        write_itk_affine(tmp_path / "y.txt", matrix, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n", "not a 4x4 matrix"),
        ("0 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "can't be inverted"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 2\n", "last row is 0 0 0 1"),
        ("no numbers\n", "must be one ITK transform"),
    ],
)
def test_files_that_are_no_affine_are_one_clear_error(tmp_path: Path, text, message) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(CohortError, match=message) as raised:
        read_affine(path)
    assert str(path) in str(raised.value)


def test_ants_resamples_alike(tmp_path: Path, matrix) -> None:
    ants = pytest.importorskip("ants")
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "image.nii.gz")
    itk, _ = transform_names("s", "native", "aligned")
    write_affine_files(tmp_path, "s", "native", "aligned", matrix)
    image = ants.image_read(str(tmp_path / "image.nii.gz"))
    theirs = ants.apply_transforms(image, image, [str(tmp_path / itk)]).numpy()
    tensor = torch.from_numpy(values)[None, None]
    ours = resample_by_matrix(tensor, AFFINE, torch.from_numpy(matrix), AFFINE, SHAPE)[0, 0].numpy()
    inside = resample_by_matrix(
        torch.ones_like(tensor), AFFINE, torch.from_numpy(matrix), AFFINE, SHAPE
    )[0, 0].numpy()
    assert (inside > 0.999).mean() > 0.3
    np.testing.assert_allclose(theirs[inside > 0.999], ours[inside > 0.999], atol=1e-3)
