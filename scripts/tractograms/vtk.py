"""Legacy VTK polydata: points, and lines that refer to points by index.

Binary files are mapped, not read, so that memory doesn't grow with them; text files are in memory
as a whole while they are read. The format doesn't record the directions of its axes. Points are
read as LPS mm if the title has ``SPACE=LPS`` (3D Slicer) and in ``.fib`` files (MITK, dipy), else
as RAS mm (MRtrix). dipy's ``.vtk`` are LPS, which a setting must say. XML files (``.vtp``) are not
read.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import numpy as np

from scripts.runtime.file_names import ending_of
from scripts.tractograms.source import Source, counted_records
from scripts.tractograms.streamlines import Streamlines, TractogramError
from scripts.tractograms.vtk_words import BinaryWords, TextWords

__all__ = ["open_vtk", "write_vtk"]

_TYPES = {
    "char": "i1",
    "unsigned_char": "u1",
    "short": "i2",
    "unsigned_short": "u2",
    "int": "i4",
    "unsigned_int": "u4",
    "long": "i8",
    "unsigned_long": "u8",
    "vtkidtype": "i4",  # as VTK writes it, for any size in memory
    "vtktypeint64": "i8",
    "vtktypeuint64": "u8",
    "signed_char": "i1",
    "float": "f4",
    "double": "f8",
}
_COLUMNS = {"VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "TENSORS6": 6}
_STRINGS = ("string", "utf8_string", "unicode_string", "variant")
_IDS = ("GLOBAL_IDS", "PEDIGREE_IDS", "EDGE_FLAGS")


@dataclass
class _Polydata:
    """The sections of a file that are used.

    Attributes:
        points: ``(P, 3)``.
        lines: records of a count and that many point indices; None with ``starts``.
        starts: start of each line in ``connectivity``, and the end (VTK 5).
        connectivity: point indices, line after line (VTK 5).
        values: per-line values by name, ``(n, k)``.
        point_values: per-point values by name, ``(P, k)``.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    lines: np.ndarray | None = None
    n_lines: int = 0
    starts: np.ndarray | None = None
    connectivity: np.ndarray | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)
    point_values: dict[str, np.ndarray] = field(default_factory=dict)


def open_vtk(file: Path, path: Path, space: str = "auto") -> Source:
    """Open a legacy VTK file.

    Args:
        file: to read.
        path: that messages name.
        space: ``ras``, ``lps``, or ``auto``: see above.

    Raises:
        TractogramError: it isn't legacy VTK, is truncated, or contains no lines.
    """
    with file.open("rb") as stream:
        head = [stream.readline(1024).decode("latin-1").strip() for _ in range(3)]
        start = stream.tell()
    if not head[0].startswith("# vtk DataFile Version") or head[2] not in ("ASCII", "BINARY"):
        hint = ""
        if ending_of(path).startswith(".fib"):
            hint = "; DSI Studio's .fib holds directions, not tracts: export these as .trk.gz"
        raise TractogramError(path, f"can't be read: not a legacy VTK file{hint}")
    reader = (BinaryWords if head[2] == "BINARY" else TextWords)(file, path, start)
    parts = _parse(path, reader)
    signs = np.array([-1, -1, 1] if _space(path, head[1], space) == "lps" else [1, 1, 1])

    def chunks(size: int, per_point: bool) -> Iterator[Streamlines]:
        done = 0
        for numbers, offsets in _lines(parts, size):
            if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(
                parts.points
            ):
                raise TractogramError(path, "can't be read: a line names a missing point")
            points = parts.points[numbers]
            kind = np.float64 if points.dtype.itemsize > 4 else np.float32
            n = len(offsets) - 1
            data = {name: values[done : done + n] for name, values in parts.values.items()}
            done += n
            asked = parts.point_values.items() if per_point else ()
            more = {name: np.asarray(values[numbers]) for name, values in asked}
            yield Streamlines(points.astype(kind) * signs.astype(kind), offsets, data, more)

    return Source(
        chunks,
        count=parts.n_lines,
        names=tuple(parts.values),
        point_names=tuple(parts.point_values),
    )


def _space(path: Path, title: str, space: str) -> str:
    """``ras`` or ``lps``; the title has priority over the setting."""
    described = re.search(r"SPACE=(\w+)", title)
    if described is not None:
        if described[1] not in ("RAS", "LPS"):
            raise TractogramError(
                path, f"can't be read: its title says {described[0]}; must be RAS or LPS"
            )
        return described[1].lower()
    if space != "auto":
        return space
    return "lps" if ending_of(path).startswith(".fib") else "ras"


def _lines(parts: _Polydata, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Point indices and offsets, some lines at a time."""
    if parts.starts is not None and parts.connectivity is not None:
        at = 0
        while at < parts.n_lines:
            # Ends of the next lines; a limited number of them, to save memory.
            ends = parts.starts[at : at + size + 1].astype(np.int64)
            if (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > len(parts.connectivity):
                raise ValueError("its offsets decrease")
            n = max(1, int(np.searchsorted(ends, ends[0] + size, side="right")) - 1)
            yield parts.connectivity[ends[0] : ends[n]].astype(np.int64), ends[: n + 1] - ends[0]
            at += n
        return
    left, at, want = parts.n_lines, 0, size
    while left and parts.lines is not None:
        block = np.asarray(parts.lines[at : at + want]).astype(np.int64)
        starts = counted_records(block, 1, 0, left)
        n = len(starts) - 1
        if not n:
            if at + want >= len(parts.lines):
                raise ValueError("truncated within LINES")
            want *= 2
            continue
        is_number = np.ones(int(starts[-1]), dtype=bool)
        is_number[starts[:-1]] = False
        offsets = np.concatenate([[0], np.cumsum(block[starts[:-1]])])
        yield block[: int(starts[-1])][is_number], offsets
        left -= n
        at += int(starts[-1])


# ---------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------


def _parse(path: Path, reader: BinaryWords | TextWords) -> _Polydata:
    parts = _Polydata()
    owner = ""  # POINT_DATA or CELL_DATA: what the next values belong to
    cells_before = 0  # among the cells, vertices come before lines
    kind = reader.line()
    if kind is None or kind.split() != ["DATASET", "POLYDATA"]:
        raise TractogramError(path, f"can't be read: contains no POLYDATA ({(kind or '')[:40]!r})")
    seen_points = False
    total = 0
    while (line := reader.line()) is not None:
        words = line.split()
        key = words[0].upper()
        if key == "POINTS":
            flat = reader.array(_TYPES[words[2].lower()], 3 * int(words[1]))
            parts.points, seen_points = flat.reshape(-1, 3), True
        elif key in ("LINES", "VERTICES", "POLYGONS", "TRIANGLE_STRIPS"):
            cells_before += _read_cells(parts, reader, key, int(words[1]), int(words[2]))
        elif key in ("POINT_DATA", "CELL_DATA"):
            owner, total = key, int(words[1])
        elif key == "METADATA":
            _skip_metadata(reader)
        elif key == "FIELD":
            for _ in range(int(words[-1])):
                name, columns, rows, kind = _field_head(reader)
                content = _values(reader, kind, columns * rows)
                if content is not None and owner:
                    _owned(parts, owner)[name] = content.reshape(rows, columns)
        elif key == "LOOKUP_TABLE":
            reader.array("u1" if isinstance(reader, BinaryWords) else "f4", 4 * int(words[-1]))
        elif key in ("SCALARS", "COLOR_SCALARS", "TEXTURE_COORDINATES", *_COLUMNS):
            name, content = _read_attribute(reader, words, total)
            if content is not None and owner:
                _owned(parts, owner)[name] = content
        elif key in _IDS and owner:
            _values(reader, words[-1], total)  # numbers of cells or points: not used
        else:
            raise TractogramError(path, f"can't be read: has an unknown section {line[:40]!r}")
    if not seen_points:
        raise TractogramError(path, "can't be read: contains no POINTS")
    parts.values = {
        name: values[cells_before : cells_before + parts.n_lines]
        for name, values in parts.values.items()
        if len(values) >= cells_before + parts.n_lines
    }
    parts.point_values = {
        name: values
        for name, values in parts.point_values.items()
        if len(values) == len(parts.points)
    }
    return parts


def _owned(parts: _Polydata, owner: str) -> dict[str, np.ndarray]:
    return parts.values if owner == "CELL_DATA" else parts.point_values


def _values(reader: BinaryWords | TextWords, kind: str, count: int) -> np.ndarray | None:
    """The next values; None for values that aren't numbers, which are skipped."""
    if kind.lower() in _STRINGS:
        reader.skip_strings(count)
        return None
    if kind.lower() == "bit":
        reader.skip_bits(count)
        return None
    return reader.array(_TYPES[kind.lower()], count)


def _name(words: list[str]) -> str:
    """A name as VTK writes it (blanks as %20), or as others do, with blanks in it."""
    return unquote(" ".join(words))


def _read_cells(
    parts: _Polydata, reader: BinaryWords | TextWords, key: str, first: int, second: int
) -> int:
    """Add lines to the content; return the number of vertices, which come before lines."""
    at = reader.at
    words = (reader.line() or "").split() if first else []
    if words[:1] == ["OFFSETS"]:
        starts = reader.array(_TYPES[words[1].lower()], first)
        words = (reader.line() or "").split()
        if words[:1] != ["CONNECTIVITY"]:
            raise ValueError(f"{key} without CONNECTIVITY")
        numbers = reader.array(_TYPES[words[1].lower()], second)
        if key == "LINES":
            parts.starts, parts.connectivity, parts.n_lines = starts, numbers, first - 1
        return first - 1 if key == "VERTICES" else 0
    reader.at = at
    records = reader.array("i4", second)
    if key == "LINES":
        parts.lines, parts.n_lines = records, first
    return first if key == "VERTICES" else 0


def _read_attribute(
    reader: BinaryWords | TextWords, words: list[str], total: int
) -> tuple[str, np.ndarray | None]:
    """Name and values; parsed from the right, because a name may contain blanks."""
    key = words[0].upper()
    kind, columns, name = words[-1], _COLUMNS.get(key, 1), words[1:-1]
    if key == "COLOR_SCALARS":
        columns, kind = (
            int(words[-1]),
            "unsigned_char" if isinstance(reader, BinaryWords) else "float",
        )
    elif key == "TEXTURE_COORDINATES":
        columns, name = int(words[-2]), words[1:-2]
    elif key == "SCALARS":
        if kind.isdigit() and len(words) > 3:
            columns, kind, name = int(kind), words[-2], words[1:-2]
        at = reader.at
        if not (reader.line() or "").startswith("LOOKUP_TABLE"):
            reader.at = at
    values = _values(reader, kind, total * columns)
    return _name(name), None if values is None else values.reshape(total, columns)


def _field_head(reader: BinaryWords | TextWords) -> tuple[str, int, int, str]:
    """Name, columns, rows and type of an array of a FIELD."""
    while True:
        words = (reader.line() or "").split()
        if words[:1] == ["METADATA"]:
            _skip_metadata(reader)
        elif len(words) >= 4 and words[-3].isdigit() and words[-2].isdigit():
            return _name(words[:-3]), int(words[-3]), int(words[-2]), words[-1]
        else:
            raise ValueError(f"bad FIELD array {' '.join(words)[:40]!r}")


def _skip_metadata(reader: BinaryWords | TextWords) -> None:
    """VTK's block of names and further information ends at a blank line."""
    while reader.raw_line():
        pass


# ---------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------


def write_vtk(file: BinaryIO, chunks: Iterable[Streamlines]) -> int:
    """Write streamlines as binary legacy VTK, RAS mm.

    Values per streamline are CELL_DATA, values per point POINT_DATA.

    Args:
        file: to write to, seekable.
        chunks: streamlines, all with the same values.

    Returns:
        The number of streamlines.
    """

    def header(points: int) -> bytes:
        return (
            "# vtk DataFile Version 3.0\nstreamlines SPACE=RAS\nBINARY\nDATASET POLYDATA\n"
            f"POINTS {points:012d} float\n"
        ).encode("ascii")

    file.write(header(0))
    count = total = 0
    with ExitStack() as stack:
        lines = stack.enter_context(tempfile.TemporaryFile())
        values: dict[str, tuple[int, str, Any]] = {}
        at_points: dict[str, tuple[int, str, Any]] = {}
        for chunk in chunks:
            file.write(chunk.points.astype(">f4").tobytes())
            n = len(chunk)
            records = np.zeros(n + len(chunk.points), dtype=">i4")
            heads = chunk.offsets[:-1] + np.arange(n)
            is_number = np.ones(len(records), dtype=bool)
            is_number[heads] = False
            records[heads] = chunk.lengths
            records[is_number] = total + np.arange(len(chunk.points))
            lines.write(records.tobytes())
            for kept, arrays in ((values, chunk.data), (at_points, chunk.point_data)):
                for name, array in arrays.items():
                    if name not in kept:
                        spool = stack.enter_context(tempfile.TemporaryFile())
                        kept[name] = array.shape[1], _kind_of(array), spool
                    _, kind, spool = kept[name]
                    spool.write(array.astype(f">{_TYPES[kind]}").tobytes())
            count += n
            total += len(chunk.points)
        file.write(f"\nLINES {count} {count + total}\n".encode("ascii"))
        _append(file, lines)
        if values:
            file.write(f"\nCELL_DATA {count}\nFIELD FieldData {len(values)}\n".encode("ascii"))
            for name, (columns, kind, stream) in values.items():
                file.write(f"{quote(name)} {columns} {count} {kind}\n".encode("ascii"))
                _append(file, stream)
                file.write(b"\n")
        if at_points:
            head = f"\nPOINT_DATA {total}\nFIELD FieldData {len(at_points)}\n"
            file.write(head.encode("ascii"))
            for name, (columns, kind, stream) in at_points.items():
                file.write(f"{quote(name)} {columns} {total} {kind}\n".encode("ascii"))
                _append(file, stream)
                file.write(b"\n")
    file.seek(0)
    file.write(header(total))
    file.seek(0, io.SEEK_END)
    return count


def _kind_of(array: np.ndarray) -> str:
    """VTK's word for the type that values are written in: whole numbers stay whole."""
    return "vtktypeint64" if array.dtype.kind in "iu" else "float"


def _append(file: BinaryIO, stream: Any) -> None:
    stream.seek(0)
    shutil.copyfileobj(stream, file, 1 << 20)
