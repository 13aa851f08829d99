"""Field files, judged by what a reader outside the bundle makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scripts.errors import CohortError
from scripts.spatial.fields import field_names, on_full_grid, read_field, write_field
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.warp import warp


def oblique(seed: int = 0, flip: bool = False) -> np.ndarray:
    """A rotated, anisotropic, shifted affine; flipped: left-handed as well."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[:, 0] *= np.sign(np.linalg.det(rotation)) * (-1 if flip else 1)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([1.2, 2.5, 0.8])
    affine[:3, 3] = [-30, 12, 55]
    return affine


AFFINES = {
    "ras": np.diag([2.0, 2, 2, 1]),
    "las": np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]),
    "oblique": oblique(),
    "left-handed": oblique(1, flip=True),
}
affines = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())


def smooth(shape: tuple[int, ...], channels: int, seed: int) -> torch.Tensor:
    """A random smooth array ``(1, channels, *shape)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, *([4] * len(shape)), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return torch.nn.functional.interpolate(coarse, shape, mode=mode, align_corners=True)


@affines
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8)])
def test_what_is_written_is_read(
    affine: np.ndarray, shape: tuple[int, ...], make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    displacement = 2 * smooth(shape, len(shape), 0)[0].numpy()
    if len(shape) == 2:  # a plane that isn't tilted
        affine = np.diag([1.5, 2.0, 1.0, 1.0])
    path = tmp_path / "field.nii.gz"
    write_field(path, displacement, make_grid(shape, affine))
    result = read_field(path, len(shape))
    np.testing.assert_allclose(result, displacement, atol=1e-5)


@affines
def test_header_is_what_itk_expects(
    affine: np.ndarray, make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    path = tmp_path / "field.nii.gz"
    write_field(path, np.zeros((3, 5, 6, 7)), make_grid((5, 6, 7), affine))
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert image.shape == (5, 6, 7, 1, 3)
    assert int(image.header["intent_code"]) == 1007
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    for name, code in (("sform", 4), ("qform", 1)):
        result, found_code = getattr(image.header, f"get_{name}")(coded=True)
        assert found_code == code
        np.testing.assert_allclose(result, affine, atol=1e-5)


@affines
@pytest.mark.parametrize("shape", [(13, 12, 11), (13, 12)])
def test_warping_with_the_file_in_the_world_is_the_bundles_own_warp(
    affine: np.ndarray, shape: tuple[int, ...], make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    """As ITK does it: point in LPS mm, plus the vector, back to voxels, sample."""
    d = len(shape)
    if d == 2:
        affine = np.array([[0.0, -1.5, 0, 7], [2.0, 0, 0, -3], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = smooth(shape, 1, 1)
    displacement = 1.5 * smooth(shape, d, 2)
    path = tmp_path / "field.nii"
    write_field(path, displacement[0].numpy(), make_grid(shape, affine))

    file = nib.load(path)
    assert isinstance(file, nib.Nifti1Image)
    to_lps = np.diag([-1.0, -1, 1, 1]) @ file.affine
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in file.shape[:3]), indexing="ij"), -1)
    points = indices @ to_lps[:3, :3].T + to_lps[:3, 3]
    moved = points + np.asarray(file.dataobj)[:, :, :, 0, :]
    there = (moved - to_lps[:3, 3]) @ np.linalg.inv(to_lps[:3, :3]).T
    volume = image[0, 0].numpy().reshape(file.shape[:3])
    outside = map_coordinates(volume, np.moveaxis(there, -1, 0), order=1, mode="nearest")

    ours = warp(image, displacement, padding_mode="border")[0, 0].numpy()
    bound = 1e-3 * float(volume.max() - volume.min())
    np.testing.assert_allclose(outside.reshape(shape), ours, atol=bound)
    assert np.abs(ours - image[0, 0].numpy()).max() > 100 * bound


def test_a_step_to_the_patients_left_is_plus_x_in_the_file(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    """Grid LAS: one voxel along the first axis is 2 mm to the left, which LPS counts up."""
    displacement = np.zeros((3, 4, 4, 4))
    displacement[0] = 1
    path = tmp_path / "field.nii"
    write_field(path, displacement, make_grid((4, 4, 4), AFFINES["las"]))
    vectors = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    np.testing.assert_allclose(vectors.reshape(-1, 3), [[2, 0, 0]] * 64)


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 4, 4, 3), (4, 4, 4, 1, 2), (4, 4, 4, 2, 3)])
def test_what_is_no_field_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), path)
    with pytest.raises(CohortError, match=r"image\.nii: a displacement field must be a 5-D image"):
        read_field(path)


def test_names_say_which_space_goes_where() -> None:
    assert field_names("sub-1") == (
        "sub-1_from-subject_to-template_mode-image_xfm.nii.gz",
        "sub-1_from-template_to-subject_mode-image_xfm.nii.gz",
    )


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_on_the_full_grid_the_box_is_kept_and_continued_without_a_fold(
    shape: tuple[int, ...],
) -> None:
    d = len(shape)
    crop = CropBox((2, 1, 3)[:d], (7, 8, 6)[:d])
    inside = 0.3 * torch.randn(1, d, *crop.shape, generator=torch.Generator().manual_seed(0)) + 4
    full = on_full_grid(inside, crop, shape)
    assert full.shape == (1, d, *shape)
    assert torch.equal(crop.crop(full), inside)
    for index in np.ndindex(*shape):
        nearest = tuple(
            min(max(i - a, 0), b - a - 1)
            for i, a, b in zip(index, crop.start, crop.stop, strict=True)
        )
        assert torch.equal(full[(0, slice(None), *index)], inside[(0, slice(None), *nearest)])
    ramp = on_full_grid(torch.full((1, d, *crop.shape), 5.0), crop, shape)
    assert jacobian_summary(ramp[0])["corner_min"] == 1


def test_a_box_that_is_the_grid_is_returned_as_it_is() -> None:
    field = torch.randn(1, 2, 4, 5)
    assert on_full_grid(field, CropBox((0, 0), (4, 5)), (4, 5)) is field
