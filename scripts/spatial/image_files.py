"""Images from outside: NIfTI (one file or a pair) and FreeSurfer's MGH, packed or not.

The format is recognised from the content, not from the name. No more is unpacked than the header
of the file announces.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from scripts.runtime.file_names import FOREIGN, ending_of
from scripts.runtime.gzip_files import DAMAGED_GZIP, GZIP_START, GzipFile, gzip_writer
from scripts.runtime.input_files import FileError, check_file, check_fits, say
from scripts.runtime.memory import available_memory
from scripts.spatial.orientation import placement_of, usable_affine

__all__ = [
    "OpenedImage",
    "image_labels",
    "image_values",
    "open_image_file",
    "warn_of_remarks",
    "write_nifti",
]

logger = logging.getLogger(__name__)

_HEADER = 540  # bytes of the longer of the two versions' headers
_SLACK = 1 << 20  # bytes that may follow the voxels
_MGH_HEADER = 284
_MGH_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}

# Exceptions of nibabel on damaged headers and data (found in tests with such files).
_MALFORMED: tuple[type[Exception], ...] = (
    HeaderDataError,
    ImageDataError,
    ImageFileError,
    MGHError,
    WrapStructError,
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image whose voxels are complete and fit into memory.

    Attributes:
        image: as NIfTI; affine and header follow the rule of `scripts.spatial.orientation`.
        sha256: of the file's bytes (of a pair: of header and image, one after the other).
        remarks: warnings about the file.
        placed: whether the header records the position of the voxels.
    """

    image: nib.Nifti1Image
    sha256: str
    remarks: tuple[str, ...]
    placed: bool


def open_image_file(path: str | Path) -> OpenedImage:
    """Read an image.

    Args:
        path: ``.nii``, ``.img`` or ``.hdr`` of a NIfTI pair, ``.mgh`` or ``.mgz``; packed with
            gzip or not.

    Raises:
        FileError: naming the file and what is wrong with it.
    """
    file = Path(path)
    pair = _pair(file)
    if pair is not None:
        raw, packed = _contents(pair[0]), _contents(pair[1])
        header = _decompress(pair[0], raw, len(raw) + _SLACK)
        _require_nifti_pair(file, header)
        voxels = _decompress(pair[1], packed, _promised(file, header) + _SLACK)
        return _parse(file, header, hashlib.sha256(raw + packed).hexdigest(), voxels)
    raw = _contents(file)
    content, digest = _decompress(file, raw), hashlib.sha256(raw).hexdigest()
    return (_parse_mgh if _is_mgh(content) else _parse)(file, content, digest)


_warned: set[tuple[str, str]] = set()


def warn_of_remarks(path: str | Path, opened: OpenedImage) -> None:
    """Log an image's remarks, each of them once a run."""
    for remark in opened.remarks:
        if (str(path), remark) not in _warned:
            _warned.add((str(path), remark))
            logger.warning("%s: %s", path, remark)


def image_values(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """An image's voxels, float64, its header's scaling applied.

    Raises:
        FileError: they are not real numbers, or can't be read.
    """
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise FileError(Path(path), f"contains {dtype} values, not real numbers")
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


def image_labels(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """An image's voxels in the type of the file, so that whole numbers stay exact.

    If the header scales them, the values are those of `image_values`.

    Raises:
        FileError: they are not real numbers, or can't be read.
    """
    dtype = image.get_data_dtype()
    proxy: Any = image.dataobj
    if dtype.kind not in "iuf" or (proxy.slope, proxy.inter) != (1.0, 0.0):
        return image_values(path, image)
    try:
        return np.asarray(proxy.get_unscaled()).astype(dtype.newbyteorder("="), copy=False)
    except _MALFORMED as error:
        raise FileError(Path(path), f"can't be read: {say(error)}") from error


# ---------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------


def _pair(path: Path) -> tuple[Path, Path] | None:
    """Header and voxels of a pair of files that one of them names; None for a single file."""
    ending = ending_of(path)
    if not ending.startswith((".img", ".hdr")):
        return None
    is_header = ending.startswith(".hdr")
    stem, given_ending = path.name[: -len(ending)], path.name[-len(ending) :]
    kinds = ("img", "IMG") if is_header else ("hdr", "HDR")
    for kind in kinds if given_ending[1:4].islower() else kinds[::-1]:
        for packed in (given_ending[4:], "", ".gz"):
            other = path.with_name(f"{stem}.{kind}{packed}")
            if other.is_file():
                return (path, other) if is_header else (other, path)
    check_file(path)
    lacking = "image (.img)" if is_header else "header (.hdr)"
    raise FileError(path, f"can't be read: its {lacking} is not beside it")


def _contents(path: Path) -> bytes:
    check_fits(path, check_file(path).st_size)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"can't be read: {say(error)}") from error


def _decompress(path: Path, raw: bytes, largest: int | None = None) -> bytes:
    """The file's content; a packed file is unpacked only up to the size in its header.

    Args:
        path: for messages.
        raw: its bytes.
        largest: most bytes of the content; None: taken from the header.
    """
    if raw[:2] != GZIP_START:
        return raw
    try:
        with GzipFile(fileobj=io.BytesIO(raw)) as file:
            if largest is None:
                start = file.read(_HEADER)
                largest = _SLACK + (
                    _promised_mgh(start) if _is_mgh(start) else _promised(path, start)
                )
            # A byte of deflate expands to 1032 bytes at most; too little content is found below.
            largest = min(largest, 1032 * len(raw))
            file.seek(0)
            content = file.read(largest + 1)  # to the end: length and CRC are checked
    except DAMAGED_GZIP as error:
        raise FileError(path, f"can't be read: damaged gzip ({say(error)})") from error
    if len(content) > largest:
        raise FileError(
            path, f"can't be read: unpacks to more than the {largest} bytes that its header allows"
        )
    return content


def _promised(path: Path, start: bytes) -> int:
    """Bytes of a whole file, by its header."""
    header = _header(path, start)
    voxels = math.prod(max(0, int(n)) for n in header["dim"][1 : 1 + _axes(header)])
    offset = float(header["vox_offset"])
    offset = min(max(offset, 0.0), 2.0**31) if math.isfinite(offset) else 0.0
    return voxels * max(1, int(header["bitpix"]) // 8) + int(offset)


def _header(path: Path, start: bytes) -> Any:
    """A header as it is stored, unchecked, without its extensions."""
    kind = _kind(path, start).header_class
    try:
        # nibabel finds the byte order from the size of the header.
        return kind(start[: int(kind.template_dtype.itemsize)], check=False)
    except _MALFORMED as error:
        raise FileError(path, f"can't be read: {say(error)}") from error


def _axes(header: nib.Nifti1Header) -> int:
    return min(max(int(header["dim"][0]), 0), 7)


def _kind(path: Path, raw: bytes) -> Any:
    # The header's size, in either byte order, gives the version.
    kinds = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
    size = raw[:4]
    kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
    if kind is None or len(raw) < int(kind.header_class.template_dtype.itemsize):
        known = FOREIGN.get(ending_of(path))
        why = f"is {known}" if known else "not a NIfTI file"
        raise FileError(path, f"can't be read: {why}")
    return kind


_SMALL = 2**28  # bytes


def _check_memory(path: Path, voxels: int) -> None:
    """Refuse an image that doesn't fit into memory.

    Under a limit of the process (``ulimit -v``) a small image is tried all the same: if it finds no
    room there, the job is out of memory, and the image isn't to blame.
    """
    needed, free = 3 * 8 * voxels, available_memory()
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if free is not None and needed > free and not (limited and needed < _SMALL):
        raise FileError(
            path,
            f"can't be read: its {voxels} voxels need {needed / 1e9:.1f} GB of memory (three "
            f"copies in float64), {free / 1e9:.1f} GB are available",
        )


def _require_nifti_pair(path: Path, header: bytes) -> None:
    _kind(path, header)
    magic = header[344:347] if header[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") else header[4:7]
    if magic not in (b"ni1", b"ni2"):
        raise FileError(
            path,
            "is an Analyze image, which doesn't record left and right; save it as NIfTI with the "
            "program that wrote it",
        )


def _parse(path: Path, raw: bytes, sha256: str, voxels: bytes | None = None) -> OpenedImage:
    """A NIfTI file, or a pair, whose second file is ``voxels``."""
    kind, header = _kind(path, raw), _header(path, raw)
    shape = tuple(int(n) for n in header["dim"][1 : 1 + _axes(header)])
    if len(shape) != int(header["dim"][0]) or not shape:
        raise FileError(path, f"can't be read: has {int(header['dim'][0])} dimensions and no voxel")
    remarks: tuple[str, ...] = ()
    try:
        checked = header.copy()
        checked["vox_offset"] = 0  # see `_start_of_voxels`
        checked.check_fix()
        stored = header.get_data_dtype()
        promised = math.prod(shape) * stored.itemsize
        if voxels is None:
            content = raw
            start, remarks = _start_of_voxels(path, raw, header, promised)
        else:
            content, start = voxels, max(0, int(float(header["vox_offset"])))
        placement = placement_of(path, checked, shape)
        slope, inter = header.get_slope_inter()
        present = len(content) - start
        # Before anything is allocated: a damaged header may promise any number of voxels.
        if present < promised:
            raise FileError(
                path, f"can't be read: truncated, {present} bytes of voxels, expected {promised}"
            )
        _check_memory(path, math.prod(shape))
        spec = (
            shape, stored, start,
            1.0 if slope is None else slope, 0.0 if inter is None else inter,
        )  # fmt: skip
        image = kind(ArrayProxy(io.BytesIO(content), spec), placement.affine, placement.header)
    except _MALFORMED as error:
        raise FileError(path, f"can't be read: {say(error)}") from error
    image.file_map["image"].filename = str(path)
    return OpenedImage(image, sha256, (*remarks, *placement.remarks), placement.known)


def _start_of_voxels(
    path: Path, raw: bytes, header: Any, promised: int
) -> tuple[int, tuple[str, ...]]:
    """Offset of a single file's voxels; if the header has no usable one, from the file's size.

    Raises:
        FileError: the size doesn't determine it.
    """
    least = int(header.single_vox_offset)
    offset = float(header["vox_offset"])
    if math.isfinite(offset) and offset >= least:
        return int(offset), ()
    if not (math.isfinite(offset) and offset >= 0):
        raise FileError(path, f"can't be read: its header says that the voxels start at {offset:g}")
    # Extensions follow the header, each with its size.
    end, order = int(header.template_dtype.itemsize) + 4, header.endianness
    if len(raw) >= end and raw[end - 4] != 0:
        while end + 8 <= len(raw) - promised:
            size = int(np.frombuffer(raw[end : end + 4], f"{order}i4")[0])
            if size < 16 or size % 16:
                break
            end += size
    if len(raw) - promised != end:
        raise FileError(
            path,
            f"can't be read: its header says that the voxels start at byte {offset:g}, inside the "
            f"header, and its size ({len(raw)} bytes for {promised} of voxels) doesn't show where; "
            f"set vox_offset (at least {least})",
        )
    return end, (f"its header says that the voxels start at byte {offset:g}; they start at {end}",)


# ---------------------------------------------------------------------------------------------
# FreeSurfer's MGH
# ---------------------------------------------------------------------------------------------


def _is_mgh(content: bytes) -> bool:
    """Version 1, big-endian: no NIfTI header begins so."""
    return content[:4] == b"\0\0\0\x01" and len(content) >= _MGH_HEADER


def _promised_mgh(start: bytes) -> int:
    dims = np.frombuffer(start[4:20], ">i4").clip(0)
    kind = _MGH_TYPES.get(int(np.frombuffer(start[20:24], ">i4")[0]), "f8")
    return _MGH_HEADER + math.prod(map(int, dims)) * np.dtype(kind).itemsize


def _parse_mgh(path: Path, raw: bytes, sha256: str) -> OpenedImage:
    try:
        header = nib.MGHImage.header_class.from_fileobj(io.BytesIO(raw))
        shape = tuple(int(n) for n in header.get_data_shape())
        stored = header.get_data_dtype()
        if not int(header["goodRASFlag"]):
            raise FileError(
                path,
                "doesn't record its position (its goodRASFlag is 0); set it with mri_convert",
            )
        affine = usable_affine(path, header.get_affine())
        present, promised = len(raw) - _MGH_HEADER, math.prod(shape) * stored.itemsize
        if present < promised:
            raise FileError(
                path, f"can't be read: truncated, {present} bytes of voxels, expected {promised}"
            )
        _check_memory(path, math.prod(shape))
        plain = nib.Nifti1Header()
        plain.set_data_shape(shape)
        plain.set_data_dtype(stored)
        plain.set_sform(affine, code=1)
        plain.set_qform(affine, code=1)
        placement = placement_of(path, plain, shape)
        proxy = ArrayProxy(io.BytesIO(raw), (shape, stored, _MGH_HEADER, 1.0, 0.0))
        image = nib.Nifti1Image(proxy, placement.affine, placement.header)
    except _MALFORMED as error:
        raise FileError(path, f"can't be read: {say(error)}") from error
    image.file_map["image"].filename = str(path)
    return OpenedImage(image, sha256, placement.remarks, True)
