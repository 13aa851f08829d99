"""Volumes as NIfTI files: read as arrays with their grid, and written."""

from __future__ import annotations

import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.errors import CohortError
from scripts.runtime.input_files import FileError
from scripts.runtime.storage import (
    write_whole,
)
from scripts.spatial.grid import Grid
from scripts.spatial.nifti import (
    image_affine,
    image_values,
    open_nifti,
    plausible_shape,
    write_nifti,
)

__all__ = [
    "read_grid",
    "read_hashed_volume",
    "read_reference",
    "read_volume",
    "voxels_of",
    "write_density",
    "write_labels",
    "write_map",
]


def write_map(path: str | Path, values: np.ndarray, grid: Grid) -> None:
    """Write a map with the affine, codes and units of the grid's header, float32, unscaled.

    A plane that was read from ``(X, Y, 1)`` is written with that shape.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        values: ``(C, *grid.shape)``; one channel gives ``(X, Y, Z)``, several ``(X, Y, Z, C)``
            with Z = 1 for a plane.
        grid: of the cohort.
    """
    volume = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    if len(grid.shape) == 2 and (len(values) > 1 or len(grid.header.get_data_shape()) > 2):
        volume = volume[:, :, None]
    image = nib.Nifti1Image(np.ascontiguousarray(volume, dtype=np.float32), grid.affine)
    for name in ("sform", "qform"):
        code = int(grid.header[f"{name}_code"])
        getattr(image, f"set_{name}")(grid.affine, code=code)
    # For codes of 0 and 0 nibabel invents an affine, so one code must be set.
    if int(grid.header["sform_code"]) == 0 and int(grid.header["qform_code"]) == 0:
        image.set_sform(grid.affine, code=1)
    units = grid.header.get_xyzt_units()[0]
    image.header.set_xyzt_units(xyz=units if units != "unknown" else "mm")
    write_nifti(path, image)


def read_volume(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read an image as float64 ``(C, X, Y, Z)`` with its grid; a plane has Z = 1.

    Raises:
        CohortError: the file can't be read, isn't finite, or doesn't have 2 to 4 dimensions.
    """
    return read_hashed_volume(path)[:2]


def read_hashed_volume(path: str | Path) -> tuple[np.ndarray, Grid, str]:
    """As `read_volume`, and the SHA-256 of the bytes that were read.

    Raises:
        CohortError: see `read_volume`.
    """
    file = Path(path)
    _require_there(file)
    image, sha256 = open_nifti(file)
    _require_volume(file, image)
    data = finite_values(file, image)
    if data.ndim == 2:
        data = data[:, :, None]
    channels = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    grid = Grid(tuple(channels.shape[1:]), image_affine(file, image), image.header.copy())
    return np.ascontiguousarray(channels), grid, sha256


def read_grid(path: str | Path) -> Grid:
    """The grid of an image of 2 to 4 dimensions, without its values; a plane has Z = 1.

    The file must still contain all its voxels: a header's claim alone must not decide how large a
    result may get.

    Raises:
        CohortError: the file can't be read, or isn't such an image.
    """
    file = Path(path)
    image = open_image(file)
    _require_volume(file, image)
    shape = tuple(int(n) for n in image.shape)
    return Grid((*shape, 1)[:3], image_affine(file, image), image.header.copy())


def voxels_of(path: str | Path) -> tuple[int, int]:
    """Voxels of an image's grid, and channels, from its header alone; 0 if it can't be read."""
    shape = plausible_shape(path)
    return math.prod(shape[:3]) if shape else 0, math.prod(shape[3:])


def open_image(path: Path) -> nib.Nifti1Image:
    _require_there(path)
    return open_nifti(path)[0]


def _require_there(path: Path) -> None:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")


def _require_volume(path: Path, image: nib.Nifti1Image) -> None:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise CohortError(f"{path}: has shape {shape}; must be (X, Y), (X, Y, Z) or (.., C)")


def finite_values(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    data = image_values(path, image)
    if not np.isfinite(data).all():
        raise CohortError(f"{path}: not all values are finite")
    return data


def read_reference(path: str | Path) -> Grid:
    """The grid of an image; all voxels must be present but their values don't matter.

    Args:
        path: NIfTI file; of four dimensions the first three are used.

    Raises:
        CohortError: it can't be read, or isn't a volume.
    """
    try:
        image, _ = open_nifti(path)
        affine = image_affine(path, image)
    except FileError as error:
        why = error.reason if Path(path).exists() else "can't be read: does not exist"
        raise CohortError(f"reference {path}: {why}") from error
    shape = tuple(int(n) for n in image.shape[:3])
    if len(shape) < 3 or min(shape) < 1:
        raise CohortError(f"reference {path}: has shape {shape}; must be a volume (X, Y, Z)")
    return Grid(shape, affine, image.header.copy())


def write_density(path: Path, density: np.ndarray, grid: Grid) -> None:
    """Write a map, float32, with the codes and units of the grid's header; completely or not at
    all."""
    with write_whole(path) as staged:
        write_map(staged, density[None], grid)


def write_labels(path: str | Path, labels: np.ndarray, grid: Grid, dtype: np.dtype) -> None:
    """Write labels with a given type, without scaling.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        labels: ``(C, X, Y, Z)``, a plane with Z = 1; one channel gives ``(X, Y, Z)``.
        grid: their grid; its header gives the codes and units.
        dtype: of the file that they were read from.
    """
    volume = labels[0] if len(labels) == 1 else np.moveaxis(labels, 0, -1)
    if np.issubdtype(dtype, np.integer):
        volume = np.rint(volume)
    image = nib.Nifti1Image(np.ascontiguousarray(volume).astype(dtype), grid.affine)
    for name in ("sform", "qform"):
        code = int(grid.header[f"{name}_code"]) or 1
        getattr(image, f"set_{name}")(grid.affine, code=code)
    image.header.set_xyzt_units(xyz="mm")
    write_nifti(path, image)
