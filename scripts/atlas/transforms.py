"""Transforms from elsewhere: ITK's displacement fields and affines, composed and applied once.

Every transform here maps POINTS of the image that is wanted to points of the image that is
resampled, in world millimetres, RAS. Files hold ITK's world, LPS: x and y run the other way.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.ndimage import map_coordinates

from scripts.cohort import Grid
from scripts.cohort.nifti import image_affine, image_values, open_nifti, plausible_shape
from scripts.errors import CohortError
from scripts.outside import check_file, read_text

__all__ = [
    "AffineTransform",
    "FieldTransform",
    "Transform",
    "TransformFile",
    "read_affine",
    "read_grid",
    "read_transform",
    "read_volume",
    "resample",
    "voxels_of",
]

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
_MATRIX_KINDS = ("AffineTransform", "MatrixOffsetTransformBase")
_LONGEST_AFFINE = 1 << 16  # bytes; unpacked, MATLAB's files have a thousand times as many at most
_SLAB = 16  # slices of the wanted grid that are in work at once


class Transform(Protocol):
    """A map of points."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points in RAS mm to where they come from."""
        ...


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """``y = A x``.

    Attributes:
        matrix: ``(4, 4)``, RAS mm to RAS mm.
    """

    matrix: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points to where they come from."""
        return self.matrix[:3, :3] @ points + self.matrix[:3, 3:]

    def inverted(self) -> AffineTransform:
        """The map back."""
        return AffineTransform(np.linalg.inv(self.matrix))


@dataclass(frozen=True, eq=False)
class FieldTransform:
    """``y = x + u(x)``, u interpolated linearly between voxels, 0 outside the field as in ITK.

    Outside starts half a voxel beyond the outermost centres; up to there the border's value holds.

    Attributes:
        displacement: ``(3, X, Y, Z)``, RAS mm.
        grid: where the voxels lie.
    """

    displacement: np.ndarray
    grid: Grid

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(3, N)`` points to where they come from."""
        inverse = np.linalg.inv(self.grid.affine)
        voxels = inverse[:3, :3] @ points + inverse[:3, 3:]
        ends = np.array(self.grid.shape)[:, None] - 0.5
        inside = ((voxels >= -0.5) & (voxels <= ends)).all(axis=0)
        moves = [
            map_coordinates(component, voxels, order=1, mode="nearest")
            for component in self.displacement
        ]
        return points + np.where(inside, moves, 0.0)


@dataclass(frozen=True)
class TransformFile:
    """A transform's file, to be inverted or not, as antsApplyTransforms takes ``[file,1]``."""

    path: Path
    inverted: bool = False


def read_transform(file: TransformFile) -> AffineTransform | FieldTransform:
    """Read a displacement field (``.nii[.gz]``) or an affine (``.mat``, ``.txt``, ``.tfm``).

    Raises:
        CohortError: the file can't be read, is of another kind, or can't be inverted.
    """
    name = file.path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        if file.inverted:
            raise CohortError(
                f"{file.path}: a displacement field can't be inverted here; give the field of the "
                "other direction (ANTs writes it as ...InverseWarp.nii.gz)"
            )
        return _read_field(file.path)
    if name.endswith((".mat", ".txt", ".tfm")):
        affine = read_affine(file.path)
        return affine.inverted() if file.inverted else affine
    raise CohortError(
        f"{file.path}: is no transform known here; must be a displacement field (.nii, .nii.gz) or "
        "an affine as ITK writes it (.mat, .txt, .tfm)"
    )


def read_volume(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read an image as float64 ``(C, X, Y, Z)`` with its grid, a plane having Z = 1.

    Raises:
        CohortError: the file can't be read, isn't finite, or is no image of 2 to 4 dimensions.
    """
    file = Path(path)
    image = _image(file)
    _require_volume(file, image)
    data = _finite_values(file, image)
    if data.ndim == 2:
        data = data[:, :, None]
    channels = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    grid = Grid(tuple(channels.shape[1:]), image_affine(file, image), image.header.copy())
    return np.ascontiguousarray(channels), grid


def read_grid(path: str | Path) -> Grid:
    """The grid of an image of 2 to 4 dimensions whose values don't matter, a plane having Z = 1.

    All its voxels are there all the same: what a header alone claims is no measure of what may be
    made on such a grid.

    Raises:
        CohortError: the file can't be read, or is no such image.
    """
    file = Path(path)
    image = _image(file)
    _require_volume(file, image)
    shape = tuple(int(n) for n in image.shape)
    return Grid((*shape, 1)[:3], image_affine(file, image), image.header.copy())


def voxels_of(path: str | Path) -> tuple[int, int]:
    """Voxels of an image's grid, and channels, by its header alone; 0 where it can't be read."""
    shape = plausible_shape(path)
    return math.prod(shape[:3]) if shape else 0, math.prod(shape[3:])


def _image(path: Path) -> nib.Nifti1Image:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: there is no such file")
    return open_nifti(path)[0]


def _require_volume(path: Path, image: nib.Nifti1Image) -> None:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise CohortError(f"{path}: has shape {shape}; must be (X, Y), (X, Y, Z) or (.., C)")


def _finite_values(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    data = image_values(path, image)
    if not np.isfinite(data).all():
        raise CohortError(f"{path}: is not finite everywhere")
    return data


def _read_field(path: Path) -> FieldTransform:
    image = _image(path)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) != 5 or shape[3:] != (1, 3) or min(shape) < 1:
        raise CohortError(
            f"{path}: a displacement field has shape (X, Y, Z, 1, 3), this image has {shape}"
        )
    data = _finite_values(path, image)
    ras = np.moveaxis(data[:, :, :, 0, :], -1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    grid = Grid(shape[:3], image_affine(path, image), image.header.copy())
    return FieldTransform(np.ascontiguousarray(ras), grid)


# ---------------------------------------------------------------------------------------------
# Affines
# ---------------------------------------------------------------------------------------------


def read_affine(path: str | Path) -> AffineTransform:
    """Read an affine as ITK writes it: binary (``.mat``, MATLAB v4) or text (``.txt``, ``.tfm``).

    ``y = M (x - c) + t + c`` with M row by row, then t, in the parameters and the centre c in the
    fixed parameters (ITK's `MatrixOffsetTransformBase`), LPS. A plane's transform leaves z alone.

    Raises:
        CohortError: the file can't be read, or holds anything but one such transform.
    """
    file = Path(path)
    stored = _read_mat(file) if file.name.lower().endswith(".mat") else _read_text(file)
    kind, parameters, centre = stored
    if kind.split("_")[0] not in _MATRIX_KINDS or (len(parameters), len(centre)) not in (
        (12, 3),
        (6, 2),
    ):
        raise CohortError(
            f"{file}: holds {kind} of {len(parameters)} parameters; must be one of "
            f"{', '.join(_MATRIX_KINDS)} with 12 and a centre"
        )
    d = len(centre)
    lps = np.eye(4)
    lps[:d, :d] = parameters[: d * d].reshape(d, d)
    lps[:d, 3] = parameters[d * d :] + centre - lps[:d, :d] @ centre
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps)) < 1e-12:
        raise CohortError(f"{file}: its matrix can't be inverted, so that it is no transform")
    return AffineTransform(_TO_LPS @ lps @ _TO_LPS)


def _read_mat(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: there is no such file")
    size = check_file(path).st_size
    if size > _LONGEST_AFFINE:
        raise CohortError(
            f"{path}: can't be read: has {size} bytes, more than any affine ({_LONGEST_AFFINE})"
        )
    try:
        content = loadmat(str(path), appendmat=False)
    except (
        MatReadError, NotImplementedError, ArithmeticError, LookupError, MemoryError, OSError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or "is no MATLAB file"
        raise CohortError(f"{path}: can't be read: {reason}") from error
    kinds = [name for name in content if not name.startswith("__") and name != "fixed"]
    if len(kinds) != 1 or "fixed" not in content:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise CohortError(f"{path}: holds {found}, not one ITK transform and its centre ('fixed')")
    try:
        parameters, centre = (
            np.asarray(content[name], dtype=np.float64).ravel() for name in (kinds[0], "fixed")
        )
    except (TypeError, ValueError) as error:
        raise CohortError(f"{path}: {kinds[0]} holds something that is no number") from error
    return kinds[0], parameters, centre


def _read_text(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: there is no such file")
    try:
        text = read_text(path, _LONGEST_AFFINE, encoding="ascii")
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: can't be read: is no text of an ITK transform") from error
    fields = re.findall(r"^(Transform|Parameters|FixedParameters):(.*)$", text, re.MULTILINE)
    if [name for name, _ in fields] != ["Transform", "Parameters", "FixedParameters"]:
        kinds = [value.strip() for name, value in fields if name == "Transform"]
        raise CohortError(
            f"{path}: holds {', '.join(kinds) or 'no transform'}; must hold one ITK transform with "
            "Transform:, Parameters: and FixedParameters:"
        )
    try:
        parameters, centre = (np.array(fields[i][1].split(), dtype=np.float64) for i in (1, 2))
    except ValueError as error:
        raise CohortError(f"{path}: holds a parameter that is no number") from error
    return fields[0][1].strip(), parameters, centre


# ---------------------------------------------------------------------------------------------
# Application
# ---------------------------------------------------------------------------------------------


def resample(
    volume: np.ndarray,
    source: Grid,
    transforms: Sequence[Transform],
    wanted: Grid,
    order: int = 1,
) -> np.ndarray:
    """An image seen from another grid through a chain of transforms, interpolated once.

    A point of the wanted grid passes through the transforms in their order, the first one first,
    and the image is read where it arrives; ``antsApplyTransforms -r wanted -i image -t first -t
    second`` means the same. 0 outside of the image.

    Args:
        volume: ``(C, X, Y, Z)``.
        source: grid of the volume.
        transforms: in the order of ``-t`` options; none: the identity.
        wanted: grid of the result.
        order: 1 interpolates linearly, 0 takes the nearest voxel, for labels.

    Returns:
        ``(C, *wanted.shape)`` float32.
    """
    x, y, z = (*wanted.shape, 1)[:3]
    to_voxels = np.linalg.inv(source.affine)
    result = np.empty((len(volume), x, y, z), dtype=np.float32)
    for start in range(0, x, _SLAB):
        stop = min(start + _SLAB, x)
        indices = np.mgrid[start:stop, :y, :z].reshape(3, -1)
        points = wanted.affine[:3, :3] @ indices + wanted.affine[:3, 3:]
        for transform in transforms:
            points = transform(points)
        voxels = to_voxels[:3, :3] @ points + to_voxels[:3, 3:]
        for channel, values in zip(result, volume, strict=True):
            # grid-constant fades over the last voxel, as the network's warp does.
            sampled = map_coordinates(values, voxels, order=order, mode="grid-constant")
            channel[start:stop] = sampled.reshape(stop - start, y, z)
    return result
