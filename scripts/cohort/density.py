"""Reads and checks one density map, and computes the number to divide it by."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from scripts.cohort.cohort import Subject
from scripts.runtime.input_files import FileError, read_text, say
from scripts.runtime.watched_files import changed
from scripts.spatial.grid import Grid
from scripts.spatial.nifti import image_affine, image_values, open_nifti

__all__ = [
    "DensityError",
    "LoadedDensity",
    "check_density",
    "density_divisor",
    "load_density",
    "read_density",
    "subject_density",
    "waytotal_file",
]

_LONGEST_WAYTOTAL = 1 << 20  # bytes; enough for a few numbers
_FORM_TOLERANCE = 1e-2  # of a voxel; looser than a grid's, because a qform's quaternion is float32


class DensityError(FileError):
    """A density map, or its waytotal, can't be used."""


@dataclass(frozen=True, eq=False)
class LoadedDensity:
    """A map as read.

    Attributes:
        data: float64, ``grid.shape``, scaling applied.
        grid: of its voxels.
        sha256: of the file's bytes.
        remarks: anything that isn't an error but worth a warning.
    """

    data: np.ndarray
    grid: Grid
    sha256: str
    remarks: tuple[str, ...]


def read_density(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read a density map without checking its values.

    ``(X, Y, Z, 1)`` is squeezed; ``(X, Y, 1)`` is a two-dimensional image.

    Args:
        path: NIfTI file, ``.nii`` or ``.nii.gz``.

    Returns:
        The density, float64 ``(X, Y, Z)`` or ``(X, Y)`` with the header's scaling applied, and
        its grid.

    Raises:
        CohortError: the file can't be used; the message names it and the reason.
    """
    loaded = load_density(Path(path))
    return loaded.data, loaded.grid


def load_density(path: Path) -> LoadedDensity:
    """Read a density map and what provenance needs; see `read_density`."""
    try:
        image, sha256 = open_nifti(path)
        shape = _spatial_shape(path, image.shape)
        affine = image_affine(path, image)
        data = image_values(path, image)
    except DensityError:
        raise
    except FileError as error:
        raise DensityError(error.path, error.reason) from error
    grid = Grid(shape, affine, image.header.copy())
    return LoadedDensity(data.reshape(shape), grid, sha256, _remarks(image, grid))


def _spatial_shape(path: Path, stored: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in stored)
    if any(n < 1 for n in shape):
        raise DensityError(path, f"has shape {shape}, which has no voxels")
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise DensityError(
            path, f"has shape {tuple(stored)}; must be (X, Y, Z), (X, Y, Z, 1) or (X, Y)"
        )
    return shape


def _remarks(image: nib.Nifti1Image, grid: Grid) -> tuple[str, ...]:
    header = image.header
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return ()
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
        return (f"its qform is invalid ({say(error)}); its sform is used",)
    difference = grid.same_as(Grid(grid.shape, qform, header), _FORM_TOLERANCE)
    return () if difference is None else (f"its sform and qform disagree: {difference}",)


def check_density(path: Path, data: np.ndarray, may_be_empty: bool = False) -> None:
    """Refuse values that aren't densities.

    Args:
        path: the file, for messages.
        data: ``spatial shape``, linear units.
        may_be_empty: accept a map that is 0 everywhere (a tract that a subject doesn't have).

    Raises:
        CohortError: a value isn't finite or is negative, or the map is empty.
    """
    low, high = float(data.min()), float(data.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(data.size - np.isfinite(data).sum())
        raise DensityError(path, f"is not finite in {count} voxels")
    if low < 0:
        count = int((data < 0).sum())
        raise DensityError(path, f"has negative density in {count} voxels (down to {low:g})")
    if high == 0 and not may_be_empty:
        raise DensityError(path, "is empty: no voxel has density > 0")


def density_divisor(
    method: str, path: Path, data: np.ndarray, setting: str = "normalisation"
) -> float:
    """The number to divide a map by; the same method applies to the whole cohort.

    XTRACT's ``densityNorm`` is already divided by its waytotal; its divisor is 1 with that method.

    Args:
        method: ``waytotal`` (sum of the numbers in the file beside the map), ``streamline_density``
            (sum of the map), ``max`` (its maximum) or ``none`` (1).
        path: the map's file.
        data: its density, ``spatial shape``.
        setting: that names the method, for messages.

    Raises:
        CohortError: the divisor isn't a finite number above 0.
    """
    if method == "none":
        return 1.0
    if method == "waytotal":
        return 1.0 if _stem(path) == "densityNorm" else _read_waytotal(waytotal_file(path), setting)
    if method not in ("streamline_density", "max"):
        raise ValueError(f"unknown normalisation: {method!r}")
    with np.errstate(over="ignore"):  # an infinite sum is refused below
        divisor = float(data.sum() if method == "streamline_density" else data.max())
    if not (math.isfinite(divisor) and divisor > 0):
        raise DensityError(path, f"can't be divided by its {method}, {divisor:g}")
    return divisor


def waytotal_file(path: Path) -> Path:
    """The file that contains a map's waytotal.

    ``<map>_waytotal`` or ``<map>.waytotal`` for maps in one folder, ``sum_waytotal`` beside
    ``sum_density``, else ``waytotal``.
    """
    stem = _stem(path)
    own = [path.with_name(f"{stem}_waytotal"), path.with_name(f"{stem}.waytotal")]
    if stem == "sum_density":
        own.append(path.with_name("sum_waytotal"))
    return next((file for file in own if file.exists()), path.with_name("waytotal"))


def _read_waytotal(file: Path, setting: str) -> float:
    if not os.path.lexists(file):
        raise DensityError(
            file,
            f"is missing (maps without one need {setting} streamline_density, max or none)",
        )
    try:
        text = read_text(file, _LONGEST_WAYTOTAL, encoding="ascii")
    except FileError as error:
        raise DensityError(error.path, error.reason) from error
    except UnicodeDecodeError as error:
        raise DensityError(file, f"can't be read: {say(error)}") from error
    numbers = []
    for word in text.split():
        try:
            number = math.nan if "_" in word else float(word)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise DensityError(file, f"contains {word[:40]!r}, not a number of streamlines")
        numbers.append(number)
    if not numbers:
        raise DensityError(file, "contains no number")
    total = sum(numbers)
    if not (math.isfinite(total) and total > 0):
        raise DensityError(file, "is zero" if total == 0 else "sums to infinity")
    return total


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def subject_density(subject: Subject, channels: int, shape: tuple[int, ...]) -> np.ndarray:
    """A subject's normalised density, float64, checked against its inspection.

    Args:
        subject: with files, divisors and hashes.
        channels: of the cohort.
        shape: of the cohort's grid.

    Returns:
        ``(channels, *shape)``.

    Raises:
        CohortError: a file can't be read any more, or has changed since the inspection.
    """
    density = np.zeros((channels, *shape))
    for one in subject.maps:
        loaded = load_density(one.path)
        if loaded.sha256 != one.sha256:
            raise changed(one.path)
        density[one.channel] += loaded.data / one.divisor
    return density
