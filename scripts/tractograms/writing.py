"""Writes whole tractograms in the format of the file's suffix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from scripts.errors import ConfigurationError
from scripts.runtime.storage import write_whole
from scripts.tractograms.arrays import ARRAY, write_array
from scripts.tractograms.reading import SUFFIXES
from scripts.tractograms.streamlines import Streamlines
from scripts.tractograms.tck import write_tck
from scripts.tractograms.trk import write_trk
from scripts.tractograms.trx import write_trx
from scripts.tractograms.vtk import write_vtk

__all__ = ["write_tractogram"]

_LONGEST_NAME = 100  # characters; the file name contains more than this name


def write_tractogram(
    path: str | Path,
    streamlines: Streamlines | Iterable[Streamlines],
    shape: tuple[int, ...] | None = None,
    affine: np.ndarray | None = None,
    groups: dict[str, np.ndarray] | None = None,
) -> int:
    """Write a tractogram; the file appears completely or not at all.

    TCK and arrays can't hold per-streamline values: each goes to a text file beside them,
    ``<name of the tractogram>_<name of the value>.txt``, one line per streamline, as in MRtrix.

    Args:
        path: ``.trk``, ``.tck``, ``.trx``, ``.vtk``, or ``.npy`` for streamlines with one number of
            points.
        streamlines: all of them, or an iterable of parts; RAS mm.
        shape: of their reference grid (for the headers of TRK and TRX).
        affine: of that grid, voxels to RAS mm.
        groups: only for TRX: indices of streamlines by the name of their group.

    Returns:
        The number of streamlines.

    Raises:
        ConfigurationError: the suffix isn't that of a tractogram, or the format can't hold a value.
        StorageError: it can't be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (*SUFFIXES, ARRAY):
        known = ", ".join((*SUFFIXES, ARRAY))
        raise ConfigurationError(f"{target}: must end with one of {known}")
    given = [streamlines] if isinstance(streamlines, Streamlines) else streamlines
    chunks = (_safely_named(chunk) for chunk in given)
    kept: dict[str, list[np.ndarray]] = {}
    with write_whole(target) as staged, staged.open("wb+") as file:
        if suffix == ".trk":
            count = write_trk(file, chunks, shape, affine)
        elif suffix == ".tck":
            count = write_tck(file, _keep(chunks, kept, "TCK"))
        elif suffix == ARRAY:
            count = write_array(file, _keep(chunks, kept, "an array"))
        elif suffix == ".trx":
            count = write_trx(file, chunks, shape, affine, groups)
        else:
            count = write_vtk(file, chunks)
    for name, parts in kept.items():
        with write_whole(target.with_name(f"{target.stem}_{name}.txt")) as staged:
            values = np.concatenate(parts)
            whole = values.dtype.kind in "iu"
            np.savetxt(staged, values, fmt="%d" if whole else "%.9g")
    return count


def _safely_named(chunk: Streamlines) -> Streamlines:
    """Check the names of values, which become names of files and of parts of archives.

    The names may come from another tractogram, and VTK allows any character in them.
    """
    return replace(chunk, data=_safe(chunk.data), point_data=_safe(chunk.point_data))


def _safe(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    named: dict[str, np.ndarray] = {}
    for name, values in data.items():
        base = re.sub(r"[^\w+-]+", "_", name)[:_LONGEST_NAME].strip("_") or "values"
        safe, number = base, 2
        while safe in named:
            safe, number = f"{base}_{number}", number + 1
        named[safe] = values
    return named


def _keep(
    chunks: Iterable[Streamlines], kept: dict[str, list[np.ndarray]], what: str
) -> Iterator[Streamlines]:
    for chunk in chunks:
        if chunk.point_data:
            raise ConfigurationError(
                f"{what} has no room for values per point ({', '.join(chunk.point_data)}); write "
                ".trx"
            )
        for name, values in chunk.data.items():
            kept.setdefault(name, []).append(values)
        yield chunk
