"""Reads and checks one density map, and computes the number to divide it by."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.cohort.cohort import DensityMap, Subject
from scripts.runtime.file_names import stem_of
from scripts.runtime.input_files import FileError, read_text, say
from scripts.runtime.watched_files import changed
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import image_values, open_image_file
from scripts.spatial.orientation import require_right_angles

__all__ = [
    "CleaningRule",
    "DensityError",
    "LoadedDensity",
    "check_density",
    "clean_density",
    "density_divisor",
    "load_density",
    "read_density",
    "subject_density",
    "waytotal_file",
    "zeroed",
]

_LONGEST_WAYTOTAL = 1 << 20  # bytes; a few numbers
_MUCH_NEGATIVE = 0.05  # of the positive density: more isn't the undershoot of a resampling


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
        raise DensityError(path, f"has shape {shape}, which has no voxels")
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise DensityError(
            path, f"has shape {tuple(stored)}; must be (X, Y, Z), (X, Y, Z, 1) or (X, Y)"
        )
    return shape


@dataclass(frozen=True)
class CleaningRule:
    """What becomes of values that are not density; see `LearnedAtlasCohortConfig`.

    Attributes:
        nan: ``refuse`` or ``zero``.
        negative: ``refuse`` or ``zero``.
        nan_option: the setting of ``nan``, for the message.
        negative_option: the setting of ``negative``.
    """

    nan: str = "refuse"
    negative: str = "refuse"
    nan_option: str = "nan"
    negative_option: str = "negative"


def clean_density(
    path: Path, data: np.ndarray, rule: CleaningRule
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Values as the rule has them: NaN and negative density refused, or read as 0.

    Args:
        path: the file, for messages.
        data: ``spatial shape``, linear units.
        rule: what becomes of them.

    Returns:
        The density; the kinds of values that were read as 0 (``nan``, ``negative``); remarks.

    Raises:
        CohortError: a value is infinite, or is refused by the rule.
    """
    low, high = float(data.min()), float(data.max())
    if low >= 0 and math.isfinite(high):  # not so where anything is NaN
        return data, (), ()
    kinds, remarks = [], []
    infinite = int(np.isinf(data).sum())
    if infinite:
        raise DensityError(path, f"is not finite in {infinite} voxels (infinite): mend the map")
    empty = np.isnan(data)
    count = int(empty.sum())
    if count and rule.nan == "refuse":
        raise DensityError(
            path,
            f"is not finite in {count} voxels (NaN, as outside a field of view); "
            f"--{rule.nan_option} zero reads NaN as 0",
        )
    if count:
        data = np.where(empty, 0.0, data)
        kinds.append("nan")
        remarks.append(f"NaN is read as 0 ({rule.nan_option})")
    below = data < 0
    count = int(below.sum())
    if count and rule.negative == "refuse":
        raise DensityError(
            path,
            f"has negative density in {count} voxels (down to {float(data.min()):g}); "
            f"--{rule.negative_option} zero reads it as 0",
        )
    if count:
        lost, kept = -float(data[below].sum()), float(data[~below].sum())
        data = np.where(below, 0.0, data)
        kinds.append("negative")
        remarks.append(f"negative density is read as 0 ({rule.negative_option})")
        if lost > _MUCH_NEGATIVE * kept:
            remarks.append(
                f"the negative density that is read as 0 is {100 * lost / max(kept, 1e-300):.3g} % "
                "of the rest: is this a density map?"
            )
    return data, tuple(kinds), tuple(remarks)


def zeroed(data: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """A map read again, those kinds of values being 0 as they were in `clean_density`."""
    if "nan" in kinds:
        data = np.where(np.isnan(data), 0.0, data)
    return np.maximum(data, 0.0) if "negative" in kinds else data


def check_density(path: Path, data: np.ndarray, may_be_empty: bool = False) -> None:
    """Refuse a map without density.

    Args:
        path: the file, for the message.
        data: ``spatial shape``, cleaned.
        may_be_empty: accept a map that is 0 everywhere (a tract that a subject doesn't have).

    Raises:
        CohortError: the map is empty.
    """
    if not may_be_empty and not data.any():
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
    candidates = [path.with_name(f"{stem}_waytotal"), path.with_name(f"{stem}.waytotal")]
    if stem == "sum_density":
        candidates.append(path.with_name("sum_waytotal"))
    return next((file for file in candidates if file.exists()), path.with_name("waytotal"))


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
    return stem_of(path)


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
        density[one.channel] += density_on_grid(one, loaded.data) / one.divisor
    return density


def density_on_grid(one: DensityMap, data: np.ndarray) -> np.ndarray:
    """A file's values as the cohort used them: cleaned, on the cohort's grid, not divided.

    Args:
        one: its map, as the inspection or ``atlas.json`` describes it.
        data: the values as they are stored.
    """
    return one.in_order(zeroed(data, one.zeroed))
