"""TrackVis' TRK: a header of 1000 bytes, then the count and the points of each streamline.

Coordinates are millimetres from the corner of the first voxel, along the axes that the header's
voxel order names; nibabel's matrix converts them to RAS mm.
"""

from __future__ import annotations

import io
import logging
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

logger = logging.getLogger(__name__)

_HEADER = 1000
_MOST_NAMES, _LONGEST_NAME = 10, 18


def open_trk(file: Path, path: Path) -> Source:
    """Open a TRK file.

    If the file has more streamlines than its header counts, all are read, with a warning: programs
    that append leave wrong counts. A file with fewer is truncated.

    Args:
        file: to read.
        path: that messages name.

    Raises:
        TractogramError: its header isn't valid, or doesn't record the position in the world.
    """
    with file.open("rb") as stream:
        start = stream.read(_HEADER)
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
    described = int(record["nb_streamlines"])  # 0 stands for "not recorded"
    columns = _columns(header["property_name"], properties, "properties")
    point_columns = _columns(header["scalar_name"], scalars, "scalars")

    def chunks(size: int, per_point: bool) -> Iterator[Streamlines]:
        order = str(header["endianness"])
        done = 0
        if not bytes(record["voxel_order"]).strip(b"\0 "):
            logger.warning(
                "%s: its header's voxel_order is empty; LPS is assumed, as TrackVis does: "
                "check the position of the streamlines",
                path,
            )
        for points, offsets, values in _records(
            file, path, order, scalars, properties, described, size
        ):
            world = points[:, :3].astype(np.float64) @ to_world[:3, :3].T + to_world[:3, 3]
            data = {name: values[:, columns[name]] for name in columns}
            more = points[:, 3:]
            at_points = (
                {n: more[:, c].copy() for n, c in point_columns.items()} if per_point else {}
            )
            done += len(offsets) - 1
            yield Streamlines(world, offsets, data, at_points)
        if described > done:
            raise TractogramError(
                path, f"is truncated: contains {done} streamlines, its header says {described}"
            )
        if described and described != done:
            logger.warning("%s: contains %d streamlines, its header says %d", path, done, described)

    return Source(
        chunks,
        count=described if described > 0 else None,
        exact=False,
        names=tuple(columns),
        point_names=tuple(point_columns),
        shape=tuple(int(n) for n in header["dimensions"]),
        affine=np.asarray(header["voxel_to_rasmm"], dtype=np.float64),
    )


def _columns(names: np.ndarray, total: int, rest: str) -> dict[str, slice]:
    """Columns of each value, what has no name as ``rest``.

    nibabel writes ``name\\0number`` for several columns of one name.
    """
    columns: dict[str, slice] = {}
    at = 0
    for raw in names:
        if at >= total:
            break
        text, _, number = bytes(raw).partition(b"\0")
        width = int(number) if number.strip(b"\0").isdigit() else 1
        name = text.decode("latin-1") or f"{rest}_{at}"
        columns[name] = slice(at, min(at + width, total))
        at += width
    if at < total:
        columns[rest] = slice(at, total)
    return columns


def _records(
    file: Path, path: Path, order: str, scalars: int, properties: int, described: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Points ``(P, 3 + scalars)``, offsets and properties ``(n, properties)``, block by block.

    Reads the whole file; after the header's number of streamlines, only complete ones.
    """
    width = 3 + scalars
    done = 0
    with file.open("rb") as stream:
        stream.seek(_HEADER)
        words = (file.stat().st_size - _HEADER) // 4
        odd = (file.stat().st_size - _HEADER) % 4
        remainder = np.zeros(0, dtype=f"{order}i4")
        want = size * width
        while True:
            fresh = np.fromfile(stream, dtype=f"{order}i4", count=min(want, words))
            words -= len(fresh)
            block = np.concatenate([remainder, fresh]).astype("=i4", copy=False)
            if not len(block):
                break
            most = described - done if done < described else len(block)
            try:
                starts = counted_records(block, width, properties, most)
            except ValueError:
                if 0 < described <= done:
                    _tell_of_rest(path, described)
                    return
                raise
            n, end = len(starts) - 1, int(starts[-1])
            remainder = block[end:].astype(f"{order}i4", copy=False)
            done += n
            if n == 0:
                if not words and 0 < described <= done:
                    _tell_of_rest(path, described)
                    return
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
            points = floats[is_point].reshape(-1, width)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            yield points, offsets, values
    if odd and 0 < described <= done:
        _tell_of_rest(path, described)
    elif odd:
        raise TractogramError(path, "can't be read: truncated within a streamline")


def _tell_of_rest(path: Path, described: int) -> None:
    logger.warning(
        "%s: what follows the %d streamlines of its header is not a whole streamline and is "
        "left out", path, described,
    )  # fmt: skip


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
        file: to write to, seekable.
        chunks: streamlines, all with the same values.
        shape: of the reference grid; without one the header has a single voxel of 1 mm.
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
    point_names: list[str] = []
    for chunk in chunks:
        if names is None:
            names, point_names = list(chunk.data), list(chunk.point_data)
            record["nb_properties_per_streamline"] = _name(
                record["property_name"], chunk.data, "per streamline"
            )
            record["nb_scalars_per_point"] = _name(
                record["scalar_name"], chunk.point_data, "per point"
            )
        _require_exact(chunk.data | chunk.point_data)
        count += len(chunk)
        properties = np.concatenate(
            [np.zeros((len(chunk), 0)), *(chunk.data[name] for name in names)], axis=1
        ).astype("<f4")
        local = (chunk.points @ to_file[:3, :3].T + to_file[:3, 3]).astype("<f4")
        local = np.concatenate(
            [local, *(chunk.point_data[name] for name in point_names)], axis=1
        ).astype("<f4")
        file.write(_packed(local, chunk.lengths, properties).tobytes())
    record["nb_streamlines"] = count
    file.seek(0)
    file.write(record.tobytes())
    file.seek(0, io.SEEK_END)
    return count


def _require_exact(data: dict[str, np.ndarray]) -> None:
    """Refuse whole numbers that the format, which has float32 alone, would change."""
    for name, values in data.items():
        if values.dtype.kind in "iu" and (values.astype(np.float32) != values).any():
            worst = values[values.astype(np.float32) != values].flat[0]
            raise ConfigurationError(
                f"TRK stores float32 values, which can't distinguish {name} {worst} from its "
                "neighbours; write .trx"
            )


def _name(field: np.ndarray, data: dict[str, np.ndarray], what: str) -> int:
    """Put the names of values into the header's field; the number of their columns."""
    if len(data) > _MOST_NAMES:
        raise ConfigurationError(
            f"TRK stores at most {_MOST_NAMES} values {what}, got {len(data)}; write .trx"
        )
    total = 0
    for place, (name, values) in enumerate(data.items()):
        text = name.encode("latin-1", "replace")
        width = values.shape[1]
        if len(text) > _LONGEST_NAME or width > 9:
            raise ConfigurationError(
                f"TRK can't store {name!r} with {width} values {what}; write .trx"
            )
        field[place] = text if width == 1 else text + b"\0" + str(width).encode()
        total += width
    return total


def _packed(points: np.ndarray, lengths: np.ndarray, properties: np.ndarray) -> np.ndarray:
    """Records of count, points and properties, as float32 words."""
    extra = properties.shape[1]
    sizes = 1 + points.shape[1] * lengths + extra
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
