"""One density map: read, checked, and the number that it is divided by."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import math
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from scripts.cohort.grid import Grid
from scripts.errors import CohortError
from scripts.memory import available_memory

__all__ = [
    "DensityError",
    "LoadedDensity",
    "check_density",
    "density_divisor",
    "load_density",
    "read_density",
    "waytotal_file",
]

_HEADER = 540  # bytes of the longer of the two versions' headers
_SLACK = 1 << 20  # bytes that may follow the voxels
_VOXEL_SIZES = (1e-6, 1e6)  # mm: beyond them float32 displacements lose their meaning
_FORM_TOLERANCE = 1e-2  # of a voxel; a qform's quaternion is float32, so looser than a grid's


class DensityError(CohortError):
    """A density map can't be used.

    Attributes:
        path: the file at fault, the map or its waytotal.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


# What nibabel raises on damaged headers and data (found by feeding it some).
_MALFORMED = (
    HeaderDataError,
    ImageDataError,
    ImageFileError,
    WrapStructError,
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    ValueError,
)


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
    raw = _contents(path)
    sha256 = hashlib.sha256(raw).hexdigest()
    image = _parse(path, _decompress(path, raw))
    shape = _spatial_shape(path, image.shape)
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DensityError(path, f"holds {dtype} values, not real numbers")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or not np.isfinite(np.linalg.cond(affine[:3, :3])):
        raise DensityError(path, "has an affine that can't be inverted")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < _VOXEL_SIZES[0] or sizes.max() > _VOXEL_SIZES[1]:
        raise DensityError(
            path,
            f"has voxels of {' x '.join(f'{size:g}' for size in sizes)} mm; must be between "
            f"{_VOXEL_SIZES[0]:g} and {_VOXEL_SIZES[1]:g}",
        )
    try:
        data = np.asarray(image.get_fdata(dtype=np.float64, caching="unchanged"))
    except _MALFORMED as error:
        raise DensityError(path, f"can't be read: {_say(error)}") from error
    grid = Grid(shape, affine, image.header.copy())
    return LoadedDensity(data.reshape(shape), grid, sha256, _remarks(image, grid))


def _contents(path: Path) -> bytes:
    """A file's bytes, after a look at what it is: pipes wait for ever, devices never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "is no file"
            raise DensityError(path, f"can't be read: {what}")
        free = available_memory()
        if free is not None and status.st_size > free:
            raise DensityError(
                path,
                f"can't be read: has {status.st_size / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory "
                "are available",
            )
        return path.read_bytes()
    except OSError as error:
        loop = error.errno == errno.ELOOP
        broken = path.is_symlink() and (loop or not path.exists())
        what = "is a broken link" if broken else _say(error)
        raise DensityError(path, f"can't be read: {what}") from error


def _decompress(path: Path, raw: bytes) -> bytes:
    """The file's content; of a compressed one no more than its own header makes plausible."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            # No byte of deflate stands for more than 1032: less than was promised is found below.
            largest = min(_promised(path, file.read(_HEADER)) + _SLACK, 1032 * len(raw))
            file.seek(0)
            content = file.read(largest + 1)  # to the end: length and CRC are checked
    except (EOFError, OSError, zlib.error) as error:
        raise DensityError(path, f"can't be read: damaged gzip ({_say(error)})") from error
    if len(content) > largest:
        raise DensityError(
            path, f"can't be read: unpacks to more than the {largest} bytes that its header allows"
        )
    return content


def _promised(path: Path, start: bytes) -> int:
    """Bytes of a whole file, by its header."""
    kind = _kind(path, start)
    try:
        header = kind.header_class.from_fileobj(io.BytesIO(start), check=False)
        voxels = math.prod(max(0, int(n)) for n in header["dim"][1 : 1 + _axes(header)])
        offset = float(header["vox_offset"])
    except _MALFORMED as error:
        raise DensityError(path, f"can't be read: {_say(error)}") from error
    offset = min(max(offset, 0.0), 2.0**31) if math.isfinite(offset) else 0.0
    return voxels * max(1, int(header["bitpix"]) // 8) + int(offset)


def _axes(header: nib.Nifti1Header) -> int:
    return min(max(int(header["dim"][0]), 0), 7)


def _kind(path: Path, raw: bytes) -> Any:
    # The header's size, in either byte order, tells the version.
    kinds = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
    size = raw[:4]
    kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
    if kind is None or len(raw) < int(kind.header_class.template_dtype.itemsize):
        raise DensityError(path, "can't be read: is not a NIfTI file")
    return kind


def _check_memory(path: Path, voxels: int) -> None:
    """Refuse what could only be read by bringing the machine to its knees."""
    needed, free = 3 * 8 * voxels, available_memory()
    if free is not None and needed > free:
        raise DensityError(
            path,
            f"can't be read: its {voxels} voxels need {needed / 1e9:.1f} GB of memory (three "
            f"copies in float64), {free / 1e9:.1f} GB are available",
        )


def _parse(path: Path, raw: bytes) -> nib.Nifti1Image:
    kind = _kind(path, raw)
    try:
        image = kind.from_bytes(raw)
        promised = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
        proxy: Any = image.dataobj
        present = len(raw) - int(proxy.offset)
    except _MALFORMED as error:
        raise DensityError(path, f"can't be read: {_say(error)}") from error
    # Before anything is allocated: a damaged header may promise any number of voxels.
    if present < promised:
        raise DensityError(
            path, f"can't be read: truncated, {present} bytes of voxels instead of {promised}"
        )
    _check_memory(path, math.prod(map(int, image.shape)))
    return image


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


def _remarks(image: nib.Nifti1Image, grid: Grid) -> tuple[str, ...]:
    header = image.header
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return ()
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
        return (f"its qform is invalid ({_say(error)}); its sform is used",)
    difference = grid.same_as(Grid(grid.shape, qform, header), _FORM_TOLERANCE)
    return () if difference is None else (f"its sform and qform disagree: {difference}",)


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


def density_divisor(method: str, path: Path, data: np.ndarray) -> float:
    """The number that a map is divided by, the same method for the whole cohort.

    XTRACT's ``densityNorm`` was divided by its waytotal when it was written: 1 for that method.

    Args:
        method: ``waytotal`` (sum of the numbers in the file beside the map), ``streamline_density``
            (sum of the map), ``max`` (its maximum) or ``none`` (1).
        path: the map's file.
        data: its density, ``spatial shape``.

    Raises:
        CohortError: the divisor isn't a finite number above 0.
    """
    if method == "none":
        return 1.0
    if method == "waytotal":
        return 1.0 if _stem(path) == "densityNorm" else _read_waytotal(waytotal_file(path))
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


def _read_waytotal(file: Path) -> float:
    try:
        text = file.read_text(encoding="ascii")
    except FileNotFoundError as error:
        raise DensityError(
            file,
            "is missing (maps without one need learned_atlas#cohort#normalisation "
            "streamline_density, max or none)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DensityError(file, f"can't be read: {_say(error)}") from error
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


def _say(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
