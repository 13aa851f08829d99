"""Reference sections that pairs name by their position."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from scripts.errors import CohortError
from scripts.runtime.input_files import check_file, check_fits, say
from scripts.spatial.volumes import read_volume

__all__ = ["ReferenceVolume", "read_array_file", "read_reference_volume", "to_bytes"]


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values as uint8: uint8 unchanged, others stretched from smallest to largest.

    Example:
        >>> to_bytes(np.array([0.0, 0.5, 1.0]))
        array([  0, 128, 255], dtype=uint8)
    """
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.rint(scaled).astype(np.uint8)


class ReferenceVolume:
    """Sections ``(n, rows, columns)``, found by their position in micrometres.

    Args:
        values: the volume; any numbers, made uint8.
        name: where it comes from, for messages.
        axis: along which its sections follow each other.
        step: micrometres between them.

    Raises:
        CohortError: it is not a volume of finite numbers.
    """

    def __init__(self, values: np.ndarray, name: str, axis: int = 0, step: int = 25) -> None:
        if values.ndim == 4 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim != 3 or min(values.shape) < 1:
            raise CohortError(f"{name}: has shape {values.shape}; must be a volume of sections")
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise CohortError(f"{name}: must contain finite numbers, has {values.dtype} values")
        self.name = name
        self.step = step
        self.sections = np.ascontiguousarray(np.moveaxis(to_bytes(values), axis, 0))

    def at(self, position: int) -> np.ndarray:
        """The section at a position, the last one beyond the end ``(rows, columns)``.

        Raises:
            CohortError: the position is negative.
        """
        if position < 0:
            raise CohortError(f"{self.name}: has no section at p = {position} micrometres")
        return self.sections[min(position // self.step, len(self.sections) - 1)]

    def check_shape(self, shape: tuple[int, ...], store: str) -> None:
        """Refuse a volume whose sections have another shape than a store's images.

        Raises:
            CohortError: naming both.
        """
        if self.sections.shape[1:] != shape:
            raise CohortError(
                f"{self.name}: its sections have shape {self.sections.shape[1:]}, the images of "
                f"{store} have {shape}"
            )

    def identity(self) -> str:
        """SHA-256 over the sections."""
        return hashlib.sha256(self.sections.tobytes() + str(self.step).encode()).hexdigest()


def read_reference_volume(path: str | Path, axis: int, step: int) -> ReferenceVolume:
    """A volume of sections from ``.npz``, ``.npy`` or NIfTI.

    Raises:
        CohortError: it can't be read.
    """
    file = Path(path)
    if file.suffix.lower() in (".npz", ".npy"):
        return ReferenceVolume(read_array_file(file), str(path), axis, step)
    values, _ = read_volume(file)
    if len(values) != 1:
        raise CohortError(f"{path}: has {len(values)} channels; must have one")
    return ReferenceVolume(values[0], str(path), axis, step)


def read_array_file(path: Path, name: str | None = None) -> np.ndarray:
    """An array of an ``.npz`` or ``.npy`` file; objects, which may contain code, are refused.

    Args:
        path: of the file.
        name: of the array; None: the only one of most axes.

    Raises:
        CohortError: it can't be read, or has no such array.
    """
    check_fits(path, check_file(path).st_size)
    try:
        result = np.load(path, allow_pickle=False)
        if isinstance(result, np.ndarray):
            return result
        with result as arrays:
            return np.asarray(arrays[_chosen(path, list(arrays.keys()), arrays, name)])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise CohortError(f"{path}: can't be read: {say(error)}") from error


def _chosen(path: Path, names: list[str], arrays: np.lib.npyio.NpzFile, name: str | None) -> str:
    if name is not None:
        if name not in names:
            raise CohortError(f"{path}: has no array {name!r}; has {', '.join(names)}")
        return name
    if "images" in names:
        return "images"
    volumes = [one for one in names if arrays[one].ndim >= 3]
    if len(volumes) != 1:
        raise CohortError(
            f"{path}: has {len(volumes)} volumes among {', '.join(names) or 'no arrays'}; name one "
            "with make_pairs#array"
        )
    return volumes[0]
