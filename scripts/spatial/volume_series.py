"""Many volumes of one grid in one 4-D file, written one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from scripts.runtime.gzip_files import gzip_parts
from scripts.spatial.grid import Grid
from scripts.spatial.volumes import set_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["label_type", "write_channel_series", "write_series"]

_MOST = 32767  # volumes along an axis of NIfTI-1


def label_type(largest: int) -> np.dtype:
    """The type that label maps up to this label share: int16, int32 or int64.

    Not the smallest one: FSL reads no unsigned 16-bit, and some tools no 64-bit integers.

    Example:
        >>> label_type(136), label_type(70_000)
        (dtype('int16'), dtype('int32'))
    """
    for kind in (np.int16, np.int32):
        if largest <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def write_series(
    path: str | Path,
    volumes: Iterable[np.ndarray],
    count: int,
    grid: Grid,
    dtype: np.dtype | type = np.float32,
) -> None:
    """Write volumes as ``(X, Y, Z, count)``; memory is that of one volume.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        volumes: ``count`` arrays of the grid's shape; a plane gets Z = 1.
        count: how many there are.
        grid: affine, codes and units.
        dtype: of the file's values; the volumes must fit into it.

    Raises:
        ValueError: there are more or fewer volumes, or one has another shape.
    """
    write_channel_series([path], (volume[None] for volume in volumes), count, grid, dtype)


def write_channel_series(
    paths: Sequence[str | Path],
    volumes: Iterable[np.ndarray],
    count: int,
    grid: Grid,
    dtype: np.dtype | type = np.float32,
) -> None:
    """Write volumes of several channels, each channel into a separate file, as `write_series` does.

    Each volume is taken once, for all files; memory is that of one volume.

    Args:
        paths: a file per channel.
        volumes: ``count`` arrays ``(len(paths), *grid.shape)``.
        count: see `write_series`.
        grid: see `write_series`.
        dtype: see `write_series`.

    Raises:
        ValueError: see `write_series`; or a volume has another number of channels.
    """
    shape = (*grid.shape, 1)[:3]
    kind = nib.Nifti1Header if max(*shape, count) <= _MOST else nib.Nifti2Header
    header: Any = kind()
    header.set_data_dtype(dtype)
    header.set_data_shape((*shape, count))
    set_place(header, grid)
    stored = header.get_data_dtype()
    written = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_parts(path)) for path in paths]
        for append in files:
            header.write_to(_Appending(append))
        for volume in volumes:
            for append, channel in zip(files, volume, strict=True):
                if channel.size != np.prod(shape):
                    raise ValueError(
                        f"volume {written} has shape {channel.shape}, the grid {shape}"
                    )
                append(np.asarray(channel, dtype=stored).reshape(shape).tobytes(order="F"))
            written += 1
    if written != count:
        raise ValueError(f"{written} volumes were given, {count} announced")


class _Appending:
    """What nibabel writes a header to."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        self.write = append


@contextmanager
def _parts(path: str | Path) -> Iterator[Callable[[bytes], None]]:
    if Path(path).suffix.lower() == ".gz":
        with gzip_parts(path) as append:
            yield append
        return
    with Path(path).open("wb") as file:

        def write(part: bytes) -> None:
            file.write(part)

        yield write
