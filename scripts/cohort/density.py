"""One density map: read, checked, and the number that it is divided by."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.cohort.cohort import Subject
from scripts.errors import CohortError
from scripts.runtime.input_files import FileError, read_text, say
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import image_values, open_image_file
from scripts.spatial.orientation import require_right_angles

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

_LONGEST_WAYTOTAL = 1 << 20  # bytes; a few numbers


class DensityError(FileError):
    """A density map, or its waytotal, can't be used."""


@dataclass(frozen=True, eq=False)
class LoadedDensity:
    """A map as it was read.

    Attributes:
        data: float64, ``grid.shape``, scaling applied.
        grid: where its voxels lie.
        sha256: of the file's bytes.
        remarks: what isn't wrong but worth a warning.
    """

    data: np.ndarray
    grid: Grid
    sha256: str
    remarks: tuple[str, ...]


def read_density(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read a density map, values not yet checked.

    ``(X, Y, Z, 1)`` is squeezed, and ``(X, Y, 1)`` is an image of two dimensions.

    Args:
        path: NIfTI file, ``.nii`` or ``.nii.gz``.

    Returns:
        The density, float64 ``(X, Y, Z)`` or ``(X, Y)`` with the header's scaling applied, and
        its grid.

    Raises:
        CohortError: naming the file and what is wrong with it.
    """
    loaded = load_density(Path(path))
    return loaded.data, loaded.grid


def load_density(path: Path) -> LoadedDensity:
    """Read a density map with what provenance needs; see `read_density`."""
    try:
        opened = open_image_file(path)
        image = opened.image
        shape = _spatial_shape(path, image.shape)
        require_right_angles(path, image.affine, shape)
        data = image_values(path, image)
    except DensityError:
        raise
    except FileError as error:
        raise DensityError(error.path, error.reason) from error
    grid = Grid(shape, np.asarray(image.affine), image.header.copy())
    return LoadedDensity(data.reshape(shape), grid, opened.sha256, opened.remarks)


def _spatial_shape(path: Path, stored: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in stored)
    if any(n < 1 for n in shape):
        raise DensityError(path, f"has shape {shape}, no voxel")
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise DensityError(
            path, f"has shape {tuple(stored)}; must be (X, Y, Z), (X, Y, Z, 1) or (X, Y)"
        )
    return shape


def check_density(path: Path, data: np.ndarray, may_be_empty: bool = False) -> None:
    """Refuse what is no density.

    Args:
        path: the file, for the message.
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
    """The number that a map is divided by, the same method for the whole cohort.

    XTRACT's ``densityNorm`` was divided by its waytotal when it was written: 1 for that method.

    Args:
        method: ``waytotal`` (sum of the numbers in the file beside the map), ``streamline_density``
            (sum of the map), ``max`` (its maximum) or ``none`` (1).
        path: the map's file.
        data: its density, ``spatial shape``.
        setting: that names the method, for the message.

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
    """The file with a map's waytotal.

    ``<map>_waytotal`` or ``<map>.waytotal`` for maps that share a folder, ``sum_waytotal`` beside
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
            raise DensityError(file, f"holds {word[:40]!r}, not a number of streamlines")
        numbers.append(number)
    if not numbers:
        raise DensityError(file, "holds no number")
    total = sum(numbers)
    if not (math.isfinite(total) and total > 0):
        raise DensityError(file, "is zero" if total == 0 else "sums to infinity")
    return total


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def subject_density(subject: Subject, channels: int, shape: tuple[int, ...]) -> np.ndarray:
    """A subject's normalised density as it was inspected, in float64.

    Args:
        subject: with files, divisors and hashes.
        channels: of the cohort.
        shape: of the cohort's grid.

    Returns:
        ``(channels, *shape)``.

    Raises:
        CohortError: a file can't be read any more, or isn't the one that was inspected.
    """
    density = np.zeros((channels, *shape))
    for one in subject.maps:
        loaded = load_density(one.path)
        if loaded.sha256 != one.sha256:
            raise CohortError(f"{one.path}: was changed while it was being used")
        density[one.channel] += loaded.data / one.divisor
    return density
