"""Reads NIfTI files from outside; never allocates more than the file's header justifies."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from scripts.runtime.gzip_files import DAMAGED_GZIP, GzipFile, gzip_writer
from scripts.runtime.input_files import FileError, check_file, check_fits, say
from scripts.runtime.memory import available_memory

__all__ = ["image_affine", "image_values", "open_nifti", "plausible_shape", "write_nifti"]

_HEADER = 540  # bytes of the longer of the two header versions
_SLACK = 1 << 20  # bytes that may follow the voxels
_VOXEL_SIZES = (1e-6, 1e6)  # mm: beyond them float32 displacements lose their meaning

# Exceptions that nibabel raises on damaged headers and data (found by testing with some).
_MALFORMED: tuple[type[Exception], ...] = (
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

_UNREADABLE: tuple[type[Exception], ...] = (FileError, *_MALFORMED, *DAMAGED_GZIP)


def open_nifti(path: str | Path) -> tuple[nib.Nifti1Image, str]:
    """Read a NIfTI file, compressed or not.

    Args:
        path: the file; its type is recognised by its content, not by its name.

    Returns:
        The image, with all its voxels and small enough for the memory, and the SHA-256 of the file.

    Raises:
        FileError: the file can't be used; the message names it and the reason.
    """
    file = Path(path)
    raw = _contents(file)
    return _parse(file, _decompress(file, raw)), hashlib.sha256(raw).hexdigest()


def plausible_shape(path: str | Path) -> tuple[int, ...]:
    """The shape in a file's header, without reading anything else; for estimates.

    ``()`` if there is no header, or if the file is too small for this shape; reading the image then
    gives the error.
    """
    file = Path(path)
    try:
        size = check_file(file).st_size
        with file.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with GzipFile(file) if packed else file.open("rb") as stream:
            start = stream.read(_HEADER)
        header = _kind(file, start).header_class.from_fileobj(io.BytesIO(start), check=False)
        shape = tuple(int(n) for n in header["dim"][1 : 1 + _axes(header)])
        if min(shape, default=0) < 1 or _promised(file, start) > size * (1032 if packed else 1):
            return ()
    except _UNREADABLE:
        return ()
    return shape


def image_affine(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """An image's affine ``(4, 4)``, voxels to RAS mm.

    Raises:
        FileError: it can't be inverted, or its voxel sizes aren't plausible.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or not np.isfinite(np.linalg.cond(affine[:3, :3])):
        raise FileError(Path(path), "has an affine that can't be inverted")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < _VOXEL_SIZES[0] or sizes.max() > _VOXEL_SIZES[1]:
        raise FileError(
            Path(path),
            f"has voxels of {' x '.join(f'{size:g}' for size in sizes)} mm; they must be between "
            f"{_VOXEL_SIZES[0]:g} and {_VOXEL_SIZES[1]:g}",
        )
    return affine


def image_values(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """An image's voxels, float64, with the header's scaling applied.

    Raises:
        FileError: they aren't real numbers, or can't be read.
    """
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise FileError(Path(path), f"holds {dtype} values, not real numbers")
    try:
        return np.asarray(image.get_fdata(dtype=np.float64, caching="unchanged"))
    except _MALFORMED as error:
        raise FileError(Path(path), f"can't be read: {say(error)}") from error


def write_nifti(path: str | Path, image: nib.Nifti1Image) -> None:
    """Write an image as one file.

    Args:
        path: a name that ends in ``.gz`` gives a compressed file.
        image: NIfTI-1 or NIfTI-2.
    """
    packed = Path(path).suffix.lower() == ".gz"
    with gzip_writer(path) if packed else Path(path).open("wb") as stream:
        image.to_stream(stream)


def _contents(path: Path) -> bytes:
    check_fits(path, check_file(path).st_size)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"can't be read: {say(error)}") from error


def _decompress(path: Path, raw: bytes) -> bytes:
    """The file's content; of a compressed file, at most what its header makes plausible."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with GzipFile(fileobj=io.BytesIO(raw)) as file:
            # A byte of deflate expands to 1032 at most; missing data are noticed below.
            largest = min(_promised(path, file.read(_HEADER)) + _SLACK, 1032 * len(raw))
            file.seek(0)
            content = file.read(largest + 1)  # to the end, so that length and CRC are checked
    except DAMAGED_GZIP as error:
        raise FileError(path, f"can't be read: damaged gzip ({say(error)})") from error
    if len(content) > largest:
        raise FileError(
            path, f"can't be read: unpacks to more than the {largest} bytes that its header allows"
        )
    return content


def _promised(path: Path, start: bytes) -> int:
    """Size of the whole file in bytes, from its header."""
    kind = _kind(path, start)
    try:
        header = kind.header_class.from_fileobj(io.BytesIO(start), check=False)
        voxels = math.prod(max(0, int(n)) for n in header["dim"][1 : 1 + _axes(header)])
        offset = float(header["vox_offset"])
    except _MALFORMED as error:
        raise FileError(path, f"can't be read: {say(error)}") from error
    offset = min(max(offset, 0.0), 2.0**31) if math.isfinite(offset) else 0.0
    return voxels * max(1, int(header["bitpix"]) // 8) + int(offset)


def _axes(header: nib.Nifti1Header) -> int:
    return min(max(int(header["dim"][0]), 0), 7)


def _kind(path: Path, raw: bytes) -> Any:
    # The header's size, in either byte order, determines the version.
    kinds = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
    size = raw[:4]
    kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
    if kind is None or len(raw) < int(kind.header_class.template_dtype.itemsize):
        raise FileError(path, "can't be read: not a NIfTI file")
    return kind


def _check_memory(path: Path, voxels: int) -> None:
    """Refuse an image that needs more memory than is available."""
    needed, free = 3 * 8 * voxels, available_memory()
    if free is not None and needed > free:
        raise FileError(
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
        raise FileError(path, f"can't be read: {say(error)}") from error
    # Check before allocating: a damaged header may claim any number of voxels.
    if present < promised:
        raise FileError(
            path, f"can't be read: truncated, {present} bytes of voxels, expected {promised}"
        )
    _check_memory(path, math.prod(map(int, image.shape)))
    return image
