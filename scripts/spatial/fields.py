"""Displacement fields as files that ITK and ANTs can read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from scripts.errors import CohortError
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.image_files import image_values, open_image_file, write_nifti

__all__ = [
    "field_names",
    "on_full_grid",
    "read_field",
    "read_field_and_grid",
    "world_displacement",
    "write_field",
]

_VECTOR = 1007  # intent code of NIfTI vectors, which ITK writes and ANTs expects


def field_names(subject: str) -> tuple[str, str]:
    """File names of a subject's two fields, named as BIDS derivatives name transforms.

    Returns:
        The field that resamples the subject into template space (it is on the template grid and
        maps template points to subject points), and the inverse.
    """
    return (
        f"{subject}_from-subject_to-template_mode-image_xfm.nii.gz",
        f"{subject}_from-template_to-subject_mode-image_xfm.nii.gz",
    )


def on_full_grid(displacement: torch.Tensor, crop: CropBox, shape: tuple[int, ...]) -> torch.Tensor:
    """Extend a field of the cropped box to the whole grid by its border values.

    The field is constant outside the box, so that no fold arises at the seam; zeros would cause
    one.

    Args:
        displacement: ``(B, d, *crop.shape)`` in voxels.
        crop: the box.
        shape: the whole grid.
    """
    padding: list[int] = []
    for start, stop, n in reversed(list(zip(crop.start, crop.stop, shape, strict=True))):
        padding += [start, n - stop]
    return F.pad(displacement, padding, mode="replicate") if any(padding) else displacement


def world_displacement(displacement: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Convert voxels along the axes to millimetres in ITK's world (LPS: x and y are negated).

    Args:
        displacement: ``(d, *shape)`` in voxels; a plane has no third component.
        affine: 4x4, voxel to RAS mm.

    Returns:
        ``(*shape, 3)`` float32.
    """
    axes = affine[:3, : displacement.shape[0]]
    ras = np.tensordot(displacement.astype(np.float64), axes, axes=([0], [1]))
    return (ras * np.array([-1.0, -1.0, 1.0])).astype(np.float32)


def write_field(path: str | Path, displacement: np.ndarray, grid: Grid) -> None:
    """Write a displacement as a 5-D NIfTI ``(X, Y, Z, 1, 3)``, intent 1007, mm, LPS.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        displacement: ``(d, *grid.shape)`` in voxels, on its grid.
        grid: shape, affine and header codes.
    """
    vectors = world_displacement(displacement, grid.affine)
    if vectors.ndim == 3:
        vectors = vectors[:, :, None]
    image = nib.Nifti1Image(vectors[:, :, :, None, :], grid.affine)
    header = image.header
    header.set_intent(_VECTOR)
    header.set_xyzt_units(xyz="mm")
    image.set_sform(grid.affine, code=int(grid.header["sform_code"]) or 1)
    image.set_qform(grid.affine, code=int(grid.header["qform_code"]) or 1)
    write_nifti(path, image)


def read_field(path: str | Path, spatial_dims: int = 3) -> np.ndarray:
    """Read a field file as displacement in voxels ``(d, *shape)`` float64, the inverse of
    `write_field`.

    Raises:
        CohortError: if the file isn't a 5-D vector image.
    """
    return read_field_and_grid(path, spatial_dims)[0]


def read_field_and_grid(path: str | Path, spatial_dims: int = 3) -> tuple[np.ndarray, Grid]:
    """As `read_field`, and the grid ``(X, Y, Z)`` of the file.

    Raises:
        CohortError: see `read_field`.
    """
    image = open_image_file(path).image
    if image.ndim != 5 or image.shape[3] != 1 or image.shape[4] != 3:
        raise CohortError(
            f"{path}: a displacement field must be a 5-D image (X, Y, Z, 1, 3), "
            f"got shape {image.shape}"
        )
    ras = image_values(path, image)[:, :, :, 0, :] * np.array([-1.0, -1.0, 1.0])
    inverse = np.linalg.inv(image.affine[:3, :3])
    voxels = np.moveaxis(ras @ inverse.T, -1, 0)
    grid = Grid(tuple(image.shape[:3]), np.asarray(image.affine), image.header.copy())
    return voxels[:2, :, :, 0] if spatial_dims == 2 else voxels, grid
