"""Map files: shape, values, and the header of the grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.spatial.grid import Grid
from scripts.spatial.volumes import write_map

OBLIQUE = np.array([[1.9, 0.3, 0, 5], [-0.3, 1.9, 0, -7], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("channels", "shape", "expected"),
    [
        (1, (5, 6, 7), (5, 6, 7)),
        (3, (5, 6, 7), (5, 6, 7, 3)),
        (1, (5, 6), (5, 6)),
        (2, (5, 6), (5, 6, 1, 2)),
    ],
)
def test_values_and_shape(
    channels: int,
    shape: tuple[int, ...],
    expected: tuple[int, ...],
    make_grid: Callable[..., Grid],
    tmp_path: Path,
) -> None:
    values = np.random.default_rng(0).random((channels, *shape))
    path = tmp_path / "map.nii.gz"
    write_map(path, values, make_grid(shape, OBLIQUE))
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert image.shape == expected
    assert image.get_data_dtype() == np.float32
    assert np.isnan(float(image.header["scl_slope"])) or float(image.header["scl_slope"]) == 1
    result = np.asarray(image.dataobj).reshape(*shape, channels)
    np.testing.assert_array_equal(np.moveaxis(result, -1, 0), values.astype(np.float32))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("units", ["mm", "micron", "meter"])
@pytest.mark.parametrize(("sform", "qform"), [(4, 1), (1, 0), (0, 2), (2, 2)])
def test_codes_and_units_are_the_first_subjects(
    units: str, sform: int, qform: int, make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = make_grid((4, 5, 6), OBLIQUE)
    grid.header.set_sform(OBLIQUE, code=sform)
    grid.header.set_qform(OBLIQUE, code=qform)
    grid.header.set_xyzt_units(units)
    path = tmp_path / "map.nii"
    write_map(path, np.zeros((1, 4, 5, 6)), grid)
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert int(image.header["sform_code"]) == sform
    assert int(image.header["qform_code"]) == qform
    assert image.header.get_xyzt_units()[0] == units
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_without_codes_the_affine_in_use_is_written_down(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = make_grid((4, 5, 6), OBLIQUE)
    grid.header["sform_code"] = grid.header["qform_code"] = 0
    grid.header.set_xyzt_units("unknown")
    path = tmp_path / "map.nii"
    write_map(path, np.zeros((1, 4, 5, 6)), grid)
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert int(image.header["sform_code"]) == 1
    assert image.header.get_xyzt_units()[0] == "mm"
