"""TrackVis' TRK: a header of 1000 bytes, then the count and the points of each streamline.

Coordinates are millimetres from the corner of the first voxel, along the axes that the header's
voxel order names; nibabel's matrix converts them to RAS mm.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.streamlines.tractogram_file import HeaderError, HeaderWarning
from nibabel.streamlines.trk import get_affine_trackvis_to_rasmm, header_2_dtype

from scripts.errors import ConfigurationError
from scripts.tractograms.source import Source, counted_records
from scripts.tractograms.streamlines import Streamlines, TractogramError

__all__ = ["open_trk", "write_trk"]

_HEADER = 1000
_MOST_NAMES, _LONGEST_NAME = 10, 18


def open_trk(path: Path) -> Source:
    """Open a TRK file.

    Raises:
        TractogramError: its header isn't valid, or doesn't record the position in the world.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
    if len(start) < _HEADER or start[:5] != b"TRACK":
        raise TractogramError(path, "can't be read: is not a TRK file")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", HeaderWarning)
            header: Any = nib.streamlines.TrkFile.load(io.BytesIO(start), lazy_load=True).header
            to_world = np.asarray(get_affine_trackvis_to_rasmm(header), dtype=np.float64)
    except (HeaderError, ValueError, TypeError, ZeroDivisionError) as error:
        text = " ".join(str(error).split())
        raise TractogramError(path, f"can't be read: bad header ({text})") from error
    if any("was not recorded" in str(one.message) for one in warned):
        raise TractogramError(
            path,
            "has no vox_to_ras, so its position in the world isn't known; write it again with its "
            "reference image",
        )
    if not np.isfinite(to_world).all() or abs(np.linalg.det(to_world[:3, :3])) < 1e-12:
        raise TractogramError(path, "can't be read: bad header (voxels without a size)")
    scalars = int(header["nb_scalars_per_point"])
    properties = int(header["nb_properties_per_streamline"])
    if scalars < 0 or properties < 0:
        raise TractogramError(path, "can't be read: bad header (negative number of values)")
    # From the bytes, because nibabel has replaced a missing number of streamlines.
    big = str(header["endianness"]) == ">"
    record = np.frombuffer(start, header_2_dtype.newbyteorder(">" if big else "<"))[0]
    count = int(record["nb_streamlines"]) or None  # 0 stands for "not recorded"
    columns = _columns(header["property_name"], properties)

    def chunks(size: int) -> Iterator[Streamlines]:
        order = str(header["endianness"])
        for points, offsets, values in _records(path, order, scalars, properties, count, size):
            world = points.astype(np.float64) @ to_world[:3, :3].T + to_world[:3, 3]
            data = {name: values[:, columns[name]] for name in columns}
            yield Streamlines(world, offsets, data)

    return Source(
        chunks,
        count=count,
        names=tuple(columns),
        shape=tuple(int(n) for n in header["dimensions"]),
        affine=np.asarray(header["voxel_to_rasmm"], dtype=np.float64),
    )


def _columns(names: np.ndarray, total: int) -> dict[str, slice]:
    """Columns of each property; nibabel writes ``name\\0number`` for several columns of one
    name."""
    columns: dict[str, slice] = {}
    at = 0
    for raw in names:
        if at >= total:
            break
        text, _, number = bytes(raw).partition(b"\0")
        width = int(number) if number.strip(b"\0").isdigit() else 1
        name = text.decode("latin-1") or f"property_{at}"
        columns[name] = slice(at, min(at + width, total))
        at += width
    if at < total:
        columns["properties"] = slice(at, total)
    return columns


def _records(
    path: Path, order: str, scalars: int, properties: int, count: int | None, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Points ``(P, 3)``, offsets and property values ``(n, properties)``, block by block."""
    width = 3 + scalars
    left = count
    with path.open("rb") as file:
        file.seek(_HEADER)
        words = (path.stat().st_size - _HEADER) // 4
        odd = (path.stat().st_size - _HEADER) % 4
        carried = np.zeros(0, dtype=f"{order}i4")
        want = size * width
        while left != 0:
            fresh = np.fromfile(file, dtype=f"{order}i4", count=min(want, words))
            words -= len(fresh)
            block = np.concatenate([carried, fresh]).astype("=i4", copy=False)
            if not len(block):
                break
            most = len(block) if left is None else left
            starts = counted_records(block, width, properties, most)
            n, end = len(starts) - 1, int(starts[-1])
            carried = block[end:].astype(f"{order}i4", copy=False)
            if n == 0:
                if not words:
                    raise TractogramError(path, "can't be read: truncated within a streamline")
                want = max(want, 2 * len(block))  # a single streamline is longer than a block
                continue
            lengths = block[starts[:-1]].astype(np.int64)
            is_point = np.ones(end, dtype=bool)
            is_point[starts[:-1]] = False
            if properties:
                tail = starts[1:, None] - properties + np.arange(properties)
                is_point[tail] = False
                values = block[tail].view("=f4")
            else:
                values = np.zeros((n, 0), np.float32)
            floats = block[:end].view("=f4")
            points = floats[is_point].reshape(-1, width)[:, :3]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            left = None if left is None else left - n
            yield points, offsets, values
    if left is None and (len(carried) or odd):
        raise TractogramError(path, "can't be read: truncated within a streamline")


def write_trk(
    file: BinaryIO,
    chunks: Iterable[Streamlines],
    shape: tuple[int, ...] | None = None,
    affine: np.ndarray | None = None,
) -> int:
    """Write streamlines as TRK.

    A piece at a time in one array: nibabel's writer, streamline by streamline, takes 4 to 6 times
    as long for the same file (`bundle.bench.tractogram_writers`). The header's type is nibabel's.

    Args:
        file: a seekable binary file.
        chunks: streamlines, all with the same per-streamline values.
        shape: of the reference grid; without it the header gets a single voxel of 1 mm.
        affine: of the reference grid.

    Returns:
        The number of streamlines.

    Raises:
        ConfigurationError: the header has no room for so many values or such long names.
    """
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    header = nib.streamlines.TrkFile.create_empty_header()
    header["voxel_to_rasmm"] = affine.astype(np.float32)
    header["dimensions"] = (1, 1, 1) if shape is None else tuple(shape[:3])
    header["voxel_sizes"] = np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32)
    header["voxel_order"] = "".join(nib.orientations.aff2axcodes(affine)).encode()
    to_world = get_affine_trackvis_to_rasmm(header)
    to_file = np.linalg.inv(np.asarray(to_world, dtype=np.float64))

    # nibabel's header names two fields differently from its record type on disk.
    record = np.zeros((), dtype=header_2_dtype)
    for name in header_2_dtype.names or ():
        if name in header:
            record[name] = header[name]
    record["magic_number"], record["version"], record["hdr_size"] = b"TRACK", 2, _HEADER
    file.write(record.tobytes())
    count = 0
    names: list[str] | None = None
    for chunk in chunks:
        if names is None:
            names = list(chunk.data)
            _name_properties(record, chunk.data)
        count += len(chunk)
        properties = np.concatenate(
            [np.zeros((len(chunk), 0)), *(chunk.data[name] for name in names)], axis=1
        ).astype("<f4")
        local = (chunk.points @ to_file[:3, :3].T + to_file[:3, 3]).astype("<f4")
        file.write(_packed(local, chunk.lengths, properties).tobytes())
    record["nb_streamlines"] = count
    file.seek(0)
    file.write(record.tobytes())
    file.seek(0, io.SEEK_END)
    return count


def _name_properties(record: np.ndarray, data: dict[str, np.ndarray]) -> None:
    if len(data) > _MOST_NAMES:
        raise ConfigurationError(
            f"TRK holds at most {_MOST_NAMES} values per streamline, got {len(data)}; write .trx"
        )
    named = np.zeros(_MOST_NAMES, dtype="S20")
    total = 0
    for place, (name, values) in enumerate(data.items()):
        text = name.encode("latin-1", "replace")
        width = values.shape[1]
        if len(text) > _LONGEST_NAME or width > 9:
            raise ConfigurationError(
                f"TRK can't hold {name!r} with {width} values per streamline; write .trx"
            )
        named[place] = text if width == 1 else text + b"\0" + str(width).encode()
        total += width
    record["property_name"] = named
    record["nb_properties_per_streamline"] = total


def _packed(points: np.ndarray, lengths: np.ndarray, properties: np.ndarray) -> np.ndarray:
    """Records of count, points and properties, as float32 words."""
    extra = properties.shape[1]
    sizes = 1 + 3 * lengths + extra
    ends = np.cumsum(sizes)
    words = np.empty(int(ends[-1]) if len(ends) else 0, dtype="<f4")
    is_point = np.ones(len(words), dtype=bool)
    heads = ends - sizes
    words[heads] = lengths.astype("<i4").view("<f4")
    is_point[heads] = False
    if extra:
        tail = ends[:, None] - extra + np.arange(extra)
        words[tail] = properties
        is_point[tail] = False
    words[is_point] = points.ravel()
    return words
