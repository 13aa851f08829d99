"""Images and transforms from Python: arrays with their affines, or paths of files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.spatial.deformation import Deformation
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import write_nifti
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.transforms import AffineTransform, FieldTransform, Transform
from scripts.spatial.volumes import read_grid, read_labels, read_volume

__all__ = [
    "check_affine",
    "grid_of",
    "grid_of_image",
    "transforms_of",
    "values_of",
    "volume_of",
    "write_array",
]


def check_affine(name: str, affine: np.ndarray | None) -> np.ndarray:
    """An affine in float64.

    Args:
        name: of the image, for the message.
        affine: must be ``(4, 4)``, voxels to RAS mm.

    Raises:
        ValueError: it is missing or has another shape.
    """
    if affine is None or np.shape(affine) != (4, 4):
        value = "None" if affine is None else f"an array of shape {np.shape(affine)}"
        raise ValueError(f"affine of {name} = {value}: must be (4, 4), voxels to RAS mm")
    return np.asarray(affine, dtype=np.float64)


def grid_of(shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """The grid of an array.

    Args:
        shape: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxels to RAS mm.

    Raises:
        ValueError: the shape is not a volume's.

    Example:
        >>> grid_of((4, 5, 6), np.diag([2.0, 2, 3, 1])).spacing
        (2.0, 2.0, 3.0)
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a grid of shape {shape}: must have three axes of at least one voxel")
    header = nib.Nifti1Header()
    header["sform_code"] = 1
    return Grid(tuple(int(n) for n in shape), affine, header)


def volume_of(
    name: str, image: str | Path | np.ndarray, affine: np.ndarray | None, labels: bool = False
) -> tuple[np.ndarray, Grid]:
    """The voxels and the grid of an image.

    Args:
        name: of the image, for messages.
        image: path of a NIfTI file, or an array ``(X, Y)`` or ``(X, Y, Z)``.
        affine: ``(4, 4)`` RAS mm, of an array.
        labels: keep the type of the voxels; otherwise they are float64.

    Returns:
        ``(C, X, Y, Z)`` and its grid; a plane has Z = 1.

    Raises:
        CohortError: the file can't be read.
        ValueError: the array has another shape, no affine, or values that aren't finite.
    """
    if isinstance(image, str | Path):
        return read_labels(image) if labels else read_volume(image)
    values = np.asarray(image) if labels else np.asarray(image, dtype=np.float64)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{name} of shape {np.shape(image)}: must be (X, Y) or (X, Y, Z)")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: contains values that aren't finite")
    return values[None], grid_of(values.shape, check_affine(name, affine))


def grid_of_image(name: str, image: str | Path | np.ndarray, affine: np.ndarray | None) -> Grid:
    """The grid of an image; the voxels of a file are not read. See `volume_of`."""
    if isinstance(image, str | Path):
        return read_grid(image)
    return volume_of(name, image, affine)[1]


def values_of(name: str, image: str | Path | np.ndarray) -> np.ndarray:
    """The voxels of an image of one channel; an array is returned as it is.

    Raises:
        CohortError: the file can't be read.
        ValueError: the file has several channels.
    """
    if isinstance(image, np.ndarray):
        return image
    volume, _ = volume_of(name, image, None)
    if len(volume) != 1:
        raise ValueError(f"{image}: has {len(volume)} channels; must have one")
    return volume[0]


def transforms_of(transform: str | Path | np.ndarray | Deformation) -> list[Transform]:
    """A transform as a list, the part that points pass through first comes first.

    Args:
        transform: path of an affine or a displacement field as ITK writes it, a matrix ``(4, 4)``
            RAS mm, or a deformation.

    Raises:
        CohortError: the file can't be read.
        ValueError: the matrix has another shape.
    """
    if isinstance(transform, str | Path):
        return [read_transform(TransformFile(Path(transform)))]
    if isinstance(transform, Deformation):
        field = transform.displacement
        grid = grid_of(field.shape[1:], transform.affine)
        return [FieldTransform(field, grid), AffineTransform(transform.matrix)]
    return [AffineTransform(check_affine("a transform", transform))]


def write_array(path: Path, image: np.ndarray, affine: np.ndarray | None) -> None:
    """Write an array as a NIfTI file of type float32 into an existing folder.

    Raises:
        ValueError: the affine is missing or has another shape.
    """
    matrix = check_affine(path.name, affine)
    write_nifti(path, nib.Nifti1Image(np.asarray(image, dtype=np.float32), matrix))
