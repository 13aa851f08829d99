"""Volumes as NIfTI files: read as arrays with their grid, and written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.errors import CohortError, StorageError
from scripts.runtime.file_names import stem_of
from scripts.runtime.input_files import FileError
from scripts.runtime.storage import (
    write_whole,
)
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import (
    OpenedImage,
    image_labels,
    image_values,
    open_image_file,
    warn_of_remarks,
    write_nifti,
)
from scripts.spatial.orientation import require_right_angles

__all__ = [
    "check_earlier_density",
    "read_grid",
    "read_hashed_labels",
    "read_hashed_volume",
    "read_labels",
    "read_reference",
    "read_volume",
    "set_place",
    "write_density",
    "write_labels",
    "write_map",
    "written_name",
]

_COUNTED = "tract_density_atlas: streamlines counted"  # in the header of such maps


def write_map(path: str | Path, values: np.ndarray, grid: Grid, description: str = "") -> None:
    """Write a map with the affine, codes and units of the grid's header, float32, unscaled.

    A plane that was read from ``(X, Y, 1)`` is written with that shape.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        values: ``(C, *grid.shape)``; one channel gives ``(X, Y, Z)``, several ``(X, Y, Z, C)``
            with Z = 1 for a plane.
        grid: of the cohort.
        description: for the header, at most 79 characters.
    """
    volume = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    if len(grid.shape) == 2 and (len(values) > 1 or len(grid.header.get_data_shape()) > 2):
        volume = volume[:, :, None]
    image = nib.Nifti1Image(np.ascontiguousarray(volume, dtype=np.float32), grid.affine)
    set_place(image, grid)
    image.header["descrip"] = description.encode("ascii")
    write_nifti(path, image)


def set_place(image: Any, grid: Grid) -> None:
    """Give an image, or a header alone, the affine, codes and units of a grid's header."""
    for name in ("sform", "qform"):
        code = int(grid.header[f"{name}_code"])
        getattr(image, f"set_{name}")(grid.affine, code=code)
    # For codes of 0 and 0 nibabel invents an affine, so one code must be set.
    if int(grid.header["sform_code"]) == 0 and int(grid.header["qform_code"]) == 0:
        image.set_sform(grid.affine, code=1)
    units = grid.header.get_xyzt_units()[0]
    header = image if isinstance(image, nib.Nifti1Header) else image.header
    header.set_xyzt_units(xyz=units if units != "unknown" else "mm")


def read_volume(path: str | Path, finite: bool = True) -> tuple[np.ndarray, Grid]:
    """Read an image as float64 ``(C, X, Y, Z)`` with its grid; a plane has Z = 1.

    Args:
        path: of the image.
        finite: whether a value that isn't finite is an error.

    Raises:
        CohortError: the file can't be read, isn't finite, or doesn't have 2 to 4 dimensions.
    """
    return read_hashed_volume(path, finite)[:2]


def read_hashed_volume(path: str | Path, finite: bool = True) -> tuple[np.ndarray, Grid, str]:
    """As `read_volume`, and the SHA-256 of the bytes that were read.

    Raises:
        CohortError: see `read_volume`.
    """
    file = Path(path)
    opened = open_image(file)
    _require_volume(file, opened.image)
    read = finite_values if finite else image_values
    values, grid = _with_grid(read(file, opened.image), opened.image)
    return values, grid, opened.sha256


def read_labels(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read an image as `read_volume` does, with values in the type of the file.

    Raises:
        CohortError: the file can't be read, isn't finite, or is not an image of 2 to 4 dimensions.
    """
    return read_hashed_labels(path)[:2]


def read_hashed_labels(path: str | Path) -> tuple[np.ndarray, Grid, str]:
    """As `read_labels`, and the SHA-256 of the bytes that were read.

    Raises:
        CohortError: see `read_labels`.
    """
    file = Path(path)
    opened = open_image(file)
    _require_volume(file, opened.image)
    data = image_labels(file, opened.image)
    if data.dtype.kind == "f":
        _require_finite(file, data)
    values, grid = _with_grid(data, opened.image)
    return values, grid, opened.sha256


def _with_grid(data: np.ndarray, image: nib.Nifti1Image) -> tuple[np.ndarray, Grid]:
    if data.ndim == 2:
        data = data[:, :, None]
    channels = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    grid = Grid(tuple(channels.shape[1:]), np.asarray(image.affine), image.header.copy())
    return np.ascontiguousarray(channels), grid


def read_grid(path: str | Path) -> Grid:
    """The grid of an image of 2 to 4 dimensions, without its values; a plane has Z = 1.

    The file must contain all its voxels, so that a damaged header can't cause a huge result.

    Raises:
        CohortError: the file can't be read, isn't such an image, or its grid is sheared.
    """
    file = Path(path)
    image = open_image(file).image
    _require_volume(file, image)
    shape = (*(int(n) for n in image.shape), 1)[:3]
    require_right_angles(file, image.affine, shape)
    return Grid(shape, np.asarray(image.affine), image.header.copy())


def written_name(path: str | Path) -> str:
    """The file name for results made from an image: always NIfTI.

    Example:
        >>> written_name("m01/t2.nii"), written_name("m01/orig.mgz")
        ('t2.nii', 'orig.nii.gz')
    """
    name = Path(path).name
    return name if name.endswith((".nii", ".nii.gz")) else f"{stem_of(name)}.nii.gz"


def open_image(path: Path) -> OpenedImage:
    """Open an existing image; warnings about it are logged."""
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    opened = open_image_file(path)
    warn_of_remarks(path, opened)
    return opened


def _require_volume(path: Path, image: nib.Nifti1Image) -> None:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise CohortError(f"{path}: has shape {shape}; must be (X, Y), (X, Y, Z) or (.., C)")


def finite_values(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    data = image_values(path, image)
    _require_finite(path, data)
    return data


def _require_finite(path: Path, data: np.ndarray) -> None:
    if not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise CohortError(
            f"{path}: not all values are finite ({count} aren't); set them to 0 first, as fslmaths "
            "-nan does"
        )


def read_reference(path: str | Path) -> Grid:
    """The grid of an image that streamlines are counted on; its values don't matter.

    Args:
        path: of an image; of four dimensions the first three count.

    Raises:
        CohortError: it can't be read, isn't a volume, or doesn't record its position.
    """
    file = Path(path)
    try:
        opened = open_image_file(file)
        image = opened.image
        shape = tuple(int(n) for n in image.shape[:3])
        if len(shape) < 3 or min(shape) < 1:
            raise CohortError(f"reference {path}: has shape {shape}; must be a volume (X, Y, Z)")
        if not opened.placed:
            raise FileError(
                file,
                "its header records no orientation (qform_code and sform_code are 0), so that the "
                "place of streamlines in it isn't known; write the true orientation into the file, "
                "or give an image of the same grid that has it",
            )
        require_right_angles(file, image.affine, shape)
    except FileError as error:
        why = error.reason if file.exists() else "can't be read: does not exist"
        raise CohortError(f"reference {path}: {why}") from error
    warn_of_remarks(file, opened)
    return Grid(shape, np.asarray(image.affine), image.header.copy())


def write_density(path: Path, density: np.ndarray, grid: Grid) -> None:
    """Write a map of counted streamlines, float32, with the codes and units of the grid's header;
    completely or not at all."""
    with write_whole(path) as staged:
        write_map(staged, density[None], grid, _COUNTED)


def check_earlier_density(path: Path) -> None:
    """Make sure that a file which `write_density` is to replace is a map that it wrote.

    Raises:
        StorageError: it is something else.
    """
    if not os.path.lexists(path):
        return
    try:
        ours = bytes(open_image_file(path).image.header["descrip"].item()) == _COUNTED.encode()
    except CohortError:
        ours = False
    if not ours:
        raise StorageError(
            f"{path}: would be replaced, but is not a density map that this bundle counted; move "
            "it elsewhere, or choose another file"
        )


def write_labels(path: str | Path, labels: np.ndarray, grid: Grid) -> None:
    """Write labels in their type, so that whole numbers of any size stay exact.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        labels: ``(C, X, Y, Z)``, a plane with Z = 1; one channel gives ``(X, Y, Z)``.
        grid: of the labels; its header gives the codes and units.
    """
    volume = labels[0] if len(labels) == 1 else np.moveaxis(labels, 0, -1)
    volume = np.ascontiguousarray(volume)
    image = nib.Nifti1Image(volume, grid.affine, dtype=volume.dtype)
    for name in ("sform", "qform"):
        code = int(grid.header[f"{name}_code"]) or 1
        getattr(image, f"set_{name}")(grid.affine, code=code)
    image.header.set_xyzt_units(xyz="mm")
    write_nifti(path, image)
