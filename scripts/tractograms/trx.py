"""TRX: a zip file (or a folder) of a JSON header and raw arrays; points in RAS mm.

The arrays are read in parallel as streams, compressed or not, so that nothing is unpacked to disk
and memory doesn't grow with the tractogram.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scripts.runtime.input_files import check_fits
from scripts.runtime.plain_data import parse_json
from scripts.tractograms.source import Source
from scripts.tractograms.streamlines import Streamlines, TractogramError

__all__ = ["open_trx", "write_trx"]

_BUFFER = 1 << 20
_LONGEST_HEADER = 1 << 20
_MUCH = 1 << 27  # bytes
_SPOOLED = 1 << 22  # bytes of an array kept in memory before it moves to a temporary file


@dataclass(frozen=True)
class _Array:
    """A raw array in the file.

    Attributes:
        member: its name inside the zip or folder.
        name: its name in the format, such as ``positions`` or ``weight``.
        columns: values per entry.
        dtype: of a value, little-endian.
        size: of the member, bytes.
    """

    member: str
    name: str
    columns: int
    dtype: np.dtype[Any]
    size: int

    @property
    def rows(self) -> int:
        """Number of entries."""
        return self.size // (self.columns * self.dtype.itemsize)


def open_trx(path: Path, _: Path) -> Source:
    """Open a TRX file, or a folder with its contents.

    Args:
        path: to read, and that messages name.

    Raises:
        TractogramError: it isn't TRX, or a part is missing.
    """
    sizes, opened = _members(path)
    if "header.json" not in sizes:
        raise TractogramError(path, "can't be read: not a TRX file (header.json is missing)")
    if sizes["header.json"] > _LONGEST_HEADER:
        raise TractogramError(path, "can't be read: bad header (more than 1 MB)")
    with opened("header.json") as file:
        header = parse_json(file.read().decode("utf-8"))
    vertices, count = int(header["NB_VERTICES"]), int(header["NB_STREAMLINES"])
    affine = np.asarray(header["VOXEL_TO_RASMM"], dtype=np.float64).reshape(4, 4)
    shape = tuple(int(n) for n in header["DIMENSIONS"])
    arrays = [one for one in map(_array, sizes, sizes.values()) if one is not None]
    single = {one.name: one for one in arrays if "/" not in one.member}
    if count and not {"positions", "offsets"} <= set(single):
        raise TractogramError(path, "can't be read: not a TRX file (no positions or offsets)")
    values = {one.name: one for one in arrays if one.member.startswith("dps/")}
    at_points = {one.name: one for one in arrays if one.member.startswith("dpv/")}
    for name, columns in (("positions", 3), ("offsets", 1)):
        if name in single and single[name].columns != columns:
            raise TractogramError(
                path,
                f"can't be read: {single[name].member} has {single[name].columns} values per "
                f"entry, expected {columns}",
            )
    for one, rows in [
        *[(single[name], n) for name, n in (("positions", vertices),) if name in single],
        *((one, count) for one in values.values()),
        *((one, vertices) for one in at_points.values()),
    ]:
        if one.rows != rows:
            raise TractogramError(
                path, f"can't be read: {one.member} has {one.rows} entries, expected {rows}"
            )
    if "offsets" in single and single["offsets"].rows not in (count, count + 1):
        rows = single["offsets"].rows
        raise TractogramError(path, f"can't be read: {rows} offsets for {count} streamlines")

    def chunks(size: int, per_point: bool) -> Iterator[Streamlines]:
        if count:
            values_at_points = at_points if per_point else {}
            yield from _chunks(
                path, opened, single, values, values_at_points, (vertices, count), size
            )

    def groups() -> dict[str, np.ndarray]:
        result = {}
        for one in arrays:
            if one.member.startswith("groups/"):
                if one.rows > count:
                    raise TractogramError(
                        path, f"can't be read: {one.member} has {one.rows} of {count} entries"
                    )
                with opened(one.member) as file:
                    result[one.name] = np.frombuffer(file.read(), one.dtype).astype(np.int64)
        return result

    return Source(
        chunks,
        count,
        names=tuple(values),
        point_names=tuple(at_points),
        shape=shape,
        affine=affine,
        groups=groups,
    )


def _members(path: Path) -> tuple[dict[str, int], Callable[[str], Any]]:
    """Sizes of the parts by name, and a function that opens one."""
    if path.is_dir():
        members = {
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        return members, lambda name: (path / name).open("rb")
    with zipfile.ZipFile(path) as archive:
        parts = [one for one in archive.infolist() if not one.is_dir()]
    _check_parts(path, parts)
    sizes = {one.filename: one.file_size for one in parts}
    # Each stream opens the archive separately and closes it with its stack.
    return sizes, lambda name: zipfile.ZipFile(path).open(name)


def _check_parts(path: Path, parts: list[zipfile.ZipInfo]) -> None:
    """Refuse parts whose sizes exceed the file, or whose compression is unsupported.

    Names are only looked up and never become paths, so a name can't lead out of the archive.
    """
    left = path.stat().st_size
    for one in parts:
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TractogramError(path, f"can't be read: {one.filename!r} has unknown compression")
        if one.flag_bits & 1:
            raise TractogramError(path, f"can't be read: {one.filename!r} is encrypted")
        left -= one.compress_size
        # One byte of deflate expands to 1032 at most.
        most = one.compress_size * (1032 if one.compress_type == zipfile.ZIP_DEFLATED else 1)
        if left < 0 or one.file_size > most:
            raise TractogramError(
                path, f"can't be read: {one.filename!r} claims more than the file contains"
            )


def _array(member: str, size: int) -> _Array | None:
    """An array from the name of its file: ``name[.columns].dtype``."""
    match = re.fullmatch(
        r"(?:.*/)?([^/.]+)(?:\.(\d+))?\.((?:float|uint|int)(?:8|16|32|64))", member
    )
    if match is None or int(match[2] or 1) == 0:
        return None
    dtype = np.dtype(match[3]).newbyteorder("<")
    return _Array(member, match[1], int(match[2] or 1), dtype, size)


def _chunks(
    path: Path,
    opened: Callable[[str], Any],
    single: dict[str, _Array],
    values: dict[str, _Array],
    at_points: dict[str, _Array],
    total: tuple[int, int],
    size: int,
) -> Iterator[Streamlines]:
    vertices, count = total
    offsets_array = single["offsets"]
    with ExitStack() as stack:
        streams = {
            one.member: stack.enter_context(opened(one.member))
            for one in (single["positions"], offsets_array, *values.values(), *at_points.values())
        }

        def take(one: _Array, rows: int) -> np.ndarray:
            wanted = rows * one.columns * one.dtype.itemsize
            if wanted > _MUCH:  # only a single streamline can need so much: others come in chunks
                check_fits(path, 2 * wanted)
            raw = streams[one.member].read(wanted)
            if len(raw) < wanted:
                raise TractogramError(path, f"can't be read: truncated within {one.member}")
            return np.frombuffer(raw, one.dtype).reshape(rows, one.columns)

        # Read one offset ahead: a streamline ends where the next one starts.
        ahead = take(offsets_array, 1)[0].astype(np.int64)
        unread = offsets_array.rows - 1
        done = 0
        if int(ahead[0]) != 0:
            raise TractogramError(path, "can't be read: its offsets don't start at 0")
        waiting = ahead
        while done < count:
            # Enough offsets for a chunk, but never all of them at once.
            more = take(offsets_array, min(unread, max(1024, size // 16)))
            unread -= len(more)
            waiting = np.concatenate([waiting, more[:, 0].astype(np.int64)])
            if not unread and offsets_array.rows == count:
                waiting = np.append(waiting, vertices)
            if (np.diff(waiting) < 0).any() or int(waiting[-1]) > vertices:
                raise TractogramError(path, "can't be read: its offsets decrease")
            while len(waiting) > 1:
                n = int(np.searchsorted(waiting, waiting[0] + size, side="right")) - 1
                n = max(1, n)
                ends = waiting[: n + 1] - waiting[0]
                waiting = waiting[n:]
                points = take(single["positions"], int(ends[-1]))
                data = {name: take(one, n) for name, one in values.items()}
                point_values = {name: take(one, int(ends[-1])) for name, one in at_points.items()}
                done += n
                kind = np.float64 if points.dtype.itemsize > 4 else np.float32
                yield Streamlines(points.astype(kind, copy=False), ends, data, point_values)
        if int(waiting[0]) != vertices:
            raise TractogramError(
                path, f"can't be read: {vertices - int(waiting[0])} points belong to no streamline"
            )


def write_trx(
    file: BinaryIO,
    chunks: Iterable[Streamlines],
    shape: tuple[int, ...] | None = None,
    affine: np.ndarray | None = None,
    groups: dict[str, np.ndarray] | None = None,
) -> int:
    """Write streamlines as TRX: float32 positions, 64-bit offsets, values as ``dps`` and ``dpv``.

    Args:
        file: to write to, seekable.
        chunks: streamlines, all with the same values.
        shape: of the reference grid.
        affine: of the reference grid.
        groups: indices of streamlines by the name of their group.

    Returns:
        The number of streamlines.
    """
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    count = vertices = 0
    with ExitStack() as stack:
        # The number is known only at the end, and parts of a zip are written one after another.
        def spool() -> Any:
            return stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED))

        positions, offsets = spool(), spool()
        values: dict[str, Any] = {}
        for chunk in chunks:
            for kind, name, array in [
                *(("dps", name, array) for name, array in chunk.data.items()),
                *(("dpv", name, array) for name, array in chunk.point_data.items()),
            ]:
                dtype = "float32" if array.dtype.kind == "f" else str(array.dtype)
                columns = "" if array.shape[1] == 1 else f"{array.shape[1]}."
                member = f"{kind}/{name}.{columns}{dtype}"
                values.setdefault(member, spool() if member not in values else None)
                values[member].write(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
            positions.write(chunk.points.astype("<f4").tobytes())
            offsets.write((chunk.offsets[:-1] + vertices).astype("<u8").tobytes())
            count += len(chunk)
            vertices += len(chunk.points)
        offsets.write(np.array([vertices], dtype="<u8").tobytes())
        header = {
            "DIMENSIONS": [1, 1, 1] if shape is None else [int(n) for n in shape[:3]],
            "VOXEL_TO_RASMM": affine.tolist(),
            "NB_VERTICES": vertices,
            "NB_STREAMLINES": count,
        }
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _put(archive, "header.json", [json.dumps(header).encode()])
            _put(archive, "positions.3.float32", _pieces(positions))
            _put(archive, "offsets.uint64", _pieces(offsets))
            for member, stream in values.items():
                _put(archive, member, _pieces(stream))
            for name, numbers in (groups or {}).items():
                _put(archive, f"groups/{name}.uint32", [np.asarray(numbers, "<u4").tobytes()])
    return count


def _pieces(stream: Any) -> Iterator[bytes]:
    stream.seek(0)
    while piece := stream.read(_BUFFER):
        yield piece


def _put(archive: zipfile.ZipFile, member: str, pieces: Iterable[bytes]) -> None:
    # A fixed date, so that equal tractograms give equal files.
    with archive.open(zipfile.ZipInfo(member), "w", force_zip64=True) as target:
        for piece in pieces:
            target.write(piece)
