"""The atlas's maps as NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.cohort import Grid

__all__ = ["write_map"]


def write_map(path: str | Path, values: np.ndarray, grid: Grid) -> None:
    """Write a map with the affine, codes and units of the grid's header, float32, unscaled.

    A plane that was read from ``(X, Y, 1)`` is written so.

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
    # nibabel reads codes of 0 and 0 as an affine of its own making: one must say the truth.
    if int(grid.header["sform_code"]) == 0 and int(grid.header["qform_code"]) == 0:
        image.set_sform(grid.affine, code=1)
    units = grid.header.get_xyzt_units()[0]
    image.header.set_xyzt_units(xyz=units if units != "unknown" else "mm")
    nib.save(image, str(path))
