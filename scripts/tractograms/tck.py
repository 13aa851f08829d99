"""MRtrix' TCK: a text header, then points in RAS mm with a NaN point after each streamline."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scripts.tractograms.source import Source
from scripts.tractograms.streamlines import Streamlines, TractogramError

__all__ = ["open_tck", "write_tck"]

logger = logging.getLogger(__name__)

_LONGEST_HEADER = 1 << 20
_TYPES = {"Float32LE": "<f4", "Float32BE": ">f4", "Float64LE": "<f8", "Float64BE": ">f8"}


def open_tck(file: Path, path: Path) -> Source:
    """Open a TCK file.

    The header's ``count`` isn't trusted: MRtrix itself leaves wrong ones after editing.

    Args:
        file: to read.
        path: that messages name.

    Raises:
        TractogramError: its header isn't valid.
    """
    header, size_of_header = _header(file, path)
    kind = header.get("datatype", "Float32LE")
    place = header.get("file", f". {size_of_header}").split()
    if kind not in _TYPES:
        raise TractogramError(
            path, f"can't be read: its datatype is {kind[:40]!r}, not one of {', '.join(_TYPES)}"
        )
    if len(place) != 2 or place[0] != "." or not place[1].isdigit():
        raise TractogramError(
            path, f"can't be read: bad header (file: {' '.join(place)[:80]!r}, not '. <offset>')"
        )
    offset, dtype = int(place[1]), np.dtype(_TYPES[kind])
    if not 0 < offset <= file.stat().st_size:
        raise TractogramError(path, f"can't be read: bad header (points start at byte {offset})")

    def chunks(size: int, _: bool) -> Iterator[Streamlines]:
        described = header.get("count", "")
        done = 0
        for chunk in _chunks(file, path, offset, dtype, size):
            done += len(chunk)
            yield chunk
        if described.isdigit() and int(described) != done:
            # A NaN point within a streamline looks like its end; the count alone shows it.
            logger.warning(
                "%s: contains %d streamlines, its header says %d%s",
                path,
                done,
                int(described),
                "; a point that is NaN ends a streamline of a TCK: check whether streamlines are "
                "cut in two"
                if done > int(described)
                else "",
            )

    return Source(chunks)


def _header(file: Path, path: Path) -> tuple[dict[str, str], int]:
    """Entries of the text header, the last one of each name, and the offset of its end."""
    with file.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
    lines = start.split(b"\n", 1)
    if lines[0].strip() != b"mrtrix tracks":
        raise TractogramError(path, "can't be read: is not a TCK file")
    end = re.search(rb"^END[ \t\r]*\n", start, re.MULTILINE)
    if end is None:
        raise TractogramError(path, "can't be read: bad header (no END)")
    entries = {}
    for line in start[: end.start()].decode("utf-8", "replace").splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon:
            entries[key.strip()] = value.strip()
    return entries, end.end()


def _chunks(
    file: Path, path: Path, offset: int, dtype: np.dtype[Any], size: int
) -> Iterator[Streamlines]:
    with file.open("rb") as stream:
        stream.seek(offset)
        remainder = np.zeros((0, 3), f"=f{dtype.itemsize}")
        most = file.stat().st_size // (3 * dtype.itemsize) + 1
        ended = False
        while not ended:
            # Read as much as is held: a streamline without end is then copied only a few times.
            words = np.fromfile(stream, dtype=dtype, count=3 * min(max(size, len(remainder)), most))
            fresh = words[: len(words) // 3 * 3].reshape(-1, 3)
            fresh = fresh.astype(f"=f{dtype.itemsize}", copy=False)
            if not len(fresh):
                raise TractogramError(path, "can't be read: truncated, no end-of-tracks mark")
            infinite = np.isinf(fresh).all(axis=1)
            if infinite.any():
                ended = True
                fresh = fresh[: int(infinite.argmax())]
            block = np.concatenate([remainder, fresh])
            stops = np.flatnonzero(np.isnan(block).all(axis=1))
            rest = int(stops[-1]) + 1 if len(stops) else 0
            remainder = block[rest:]
            if ended and len(remainder):  # the last streamline has no NaN after it
                stops = np.append(stops, len(block))
                rest = len(block)
            if len(stops):
                is_point = np.ones(rest, dtype=bool)
                is_point[stops[stops < rest]] = False
                ends = stops - np.arange(len(stops))
                offsets = np.concatenate([[0], ends]).astype(np.int64)
                yield Streamlines(block[:rest][is_point], offsets)


def write_tck(file: BinaryIO, chunks: Iterable[Streamlines]) -> int:
    """Write streamlines as TCK, which can't hold per-streamline values.

    A piece at a time in one array: nibabel's writer, streamline by streamline, takes 2.4 times as
    long for the same file (`bundle.bench.tractogram_writers`).

    Args:
        file: a seekable binary file.
        chunks: streamlines.

    Returns:
        The number of streamlines.
    """

    def header(count: int) -> bytes:
        text = f"mrtrix tracks\ndatatype: Float32LE\ncount: {count:010d}\nfile: . "
        size = len(text) + len("000\nEND\n")
        return f"{text}{size:03d}\nEND\n".encode("ascii")

    file.write(header(0))
    count = 0
    for chunk in chunks:
        n = len(chunk)
        count += n
        block = np.full((len(chunk.points) + n, 3), np.nan, dtype="<f4")
        is_point = np.ones(len(block), dtype=bool)
        is_point[chunk.offsets[1:] + np.arange(n)] = False
        block[is_point] = chunk.points
        file.write(block.tobytes())
    file.write(np.full(3, np.inf, dtype="<f4").tobytes())
    file.seek(0)
    file.write(header(count))
    file.seek(0, io.SEEK_END)
    return count
