"""The store of pairs: moving images, and the displacements that bring them to their references.

HDF5, a chunk a pair. In a plane the fields are `deltas_xy` and `inv_deltas_xy`, whose channel 0
runs along columns; in a volume `deltas` and `inv_deltas`, whose channel i runs along axis i. Here
channel i always runs along axis i: reading and writing turn them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scripts.errors import CohortError
from scripts.runtime.input_files import check_file, check_fits
from scripts.runtime.storage import check_space, file_hash, write_whole
from scripts.runtime.watched_files import changed
from scripts.supervised.reference_volume import ReferenceVolume

__all__ = ["PairStore", "PairWriter", "StoredPair", "field_names_of", "to_store", "write_store"]

_IDENTIFIERS = ("p", "image_id", "dataset_id")
_OPTIONAL = ("ref", "img_labels", "ref_labels", "img_landmarks", "ref_landmarks")


@dataclass(frozen=True, eq=False)
class StoredPair:
    """One pair of a store.

    Attributes:
        moving: ``(*shape)`` uint8.
        reference: ``(*shape)`` uint8; None where the store knows none.
        field: ``(d, *shape)`` float32 pixels, ``registered(x) = moving(x + field(x))``.
        inverse: ``(d, *shape)``, back.
    """

    moving: np.ndarray
    reference: np.ndarray | None
    field: np.ndarray | None = None
    inverse: np.ndarray | None = None


def field_names_of(spatial_dims: int) -> tuple[str, str]:
    """Names of the datasets of both fields."""
    return ("deltas_xy", "inv_deltas_xy") if spatial_dims == 2 else ("deltas", "inv_deltas")


def _to_house(field: np.ndarray) -> np.ndarray:
    """``(*shape, d)`` of a store as ``(d, *shape)`` float32 whose channel i runs along axis i."""
    turned = field[..., ::-1] if field.shape[-1] == 2 else field
    return np.ascontiguousarray(np.moveaxis(turned, -1, 0), dtype=np.float32)


def to_store(field: np.ndarray) -> np.ndarray:
    """``(d, *shape)`` as a store keeps it: ``(*shape, d)`` float32, a plane's columns first."""
    turned = np.moveaxis(np.asarray(field, dtype=np.float32), 0, -1)
    return turned[..., ::-1] if turned.shape[-1] == 2 else turned


class PairStore:
    """Pairs of a file, read one by one in any order.

    The file is opened in the process that reads, so that a store may be handed to workers. What
    would lead out of the file (external links, external data) is refused.

    Args:
        path: of the HDF5 file.
        reference: sections for a store without ``ref``; None: those of the file.
        needs_fields: refuse a store without fields.

    Raises:
        CohortError: naming the dataset and the shapes at fault.
    """

    def __init__(
        self,
        path: str | Path,
        reference: ReferenceVolume | None = None,
        needs_fields: bool = True,
    ) -> None:
        self.path = Path(path)
        self.volume = reference
        self._file: Any = None
        self._process = 0
        check_file(self.path)
        self.hash = file_hash(self.path)
        with self._reading():
            self._look(self._opened(), needs_fields)
        self.close()

    # -- content of the file ----------------------------------------------------------------

    def _look(self, file: Any, needs_fields: bool) -> None:
        images = self._dataset(file, "img")
        self.shape = tuple(int(n) for n in images.shape[1:])
        self.count = int(images.shape[0])
        d = len(self.shape)
        if d not in (2, 3) or min(self.shape) < 2:
            raise self._error(
                f"img has shape {images.shape}; must be (n, rows, columns) or (n, X, Y, Z)"
            )
        if self.count == 0:
            raise self._error(f"img has shape {images.shape}; must have at least one pair")
        self._check_stored("img", images)
        if images.dtype != np.uint8:
            raise self._error(f"img has type {images.dtype}; must be uint8, 0 to 255")
        self.fields = field_names_of(d)
        missing = [name for name in self.fields if name not in file]
        self.has_fields = not missing
        if missing and needs_fields:
            raise self._error(
                f"has no dataset {missing[0]}, of shape {(*images.shape, d)} for its img; has "
                f"{', '.join(sorted(map(str, file))[:12])}"
            )
        for name in self.fields if self.has_fields else ():
            field = self._dataset(file, name)
            if tuple(field.shape) != (*images.shape, d):
                raise self._error(
                    f"{name} has shape {field.shape}; must be {(*images.shape, d)} for an img of "
                    f"{images.shape}"
                )
            if field.dtype.kind != "f":
                raise self._error(f"{name} has type {field.dtype}; must be float16 or float32")
            self._check_stored(name, field)
        self.half = self.has_fields and file[self.fields[0]].dtype == np.float16
        self.numbers = {name: self._numbers(file, name, needs_fields) for name in _IDENTIFIERS}
        self.extra = {name: name in file for name in _OPTIONAL}
        for name in _OPTIONAL:
            if self.extra[name]:
                self._check_extra(self._dataset(file, name), name, images.shape)
        if not self.extra["ref"] and self.volume is None and "reference" in file:
            inside = self._dataset(file, "reference")
            check_fits(self.path, math.prod(inside.shape) * inside.dtype.itemsize)
            self.volume = ReferenceVolume(np.asarray(inside), f"{self.path}: reference")
        if not self.extra["ref"] and self.volume is not None:
            self.volume.check_shape(self.shape, str(self.path))
        pair = math.prod(self.shape) * (2 + 8 * d)
        check_fits(self.path, 4 * pair)

    def _check_stored(self, name: str, dataset: Any) -> None:
        """Refuse a claim of pairs that aren't in the file: a few bytes can claim any number."""
        if dataset.chunks is None:
            complete = dataset.id.get_storage_size() >= dataset.nbytes
        else:
            complete = dataset.id.get_num_chunks() >= math.ceil(len(dataset) / dataset.chunks[0])
        if not complete:
            raise self._error(
                f"{name} claims {len(dataset)} pairs of {math.prod(dataset.shape[1:])} values, but "
                "the file doesn't hold them all"
            )

    def _numbers(self, file: Any, name: str, needs_fields: bool) -> np.ndarray:
        if name not in file:
            if name == "dataset_id" and needs_fields:
                raise self._error(f"has no dataset {name}, of shape ({self.count},)")
            if name == "p" and "ref" not in file:
                raise self._error(
                    f"has no dataset p, of shape ({self.count},), nor ref: no pair has a reference"
                )
            return np.arange(self.count)
        dataset = self._dataset(file, name)
        if tuple(dataset.shape) != (self.count,):
            raise self._error(
                f"{name} has shape {dataset.shape}; must be ({self.count},), one number per pair"
            )
        values = np.asarray(dataset)
        if values.dtype.kind == "f" and np.isfinite(values).all():
            values = np.rint(values)
        elif values.dtype.kind not in "iu":
            raise self._error(f"{name} has type {dataset.dtype}; must be whole numbers")
        return values.astype(np.int64)

    def _check_extra(self, dataset: Any, name: str, images: tuple[int, ...]) -> None:
        if name.endswith("landmarks"):
            right = dataset.ndim == 3 and dataset.shape[0] == self.count
            right = right and dataset.shape[2] == len(self.shape)
            wanted = f"({self.count}, points, {len(self.shape)})"
        else:
            right, wanted = tuple(dataset.shape) == tuple(images), str(tuple(images))
        if not right:
            raise self._error(f"{name} has shape {dataset.shape}; must be {wanted}")

    def _dataset(self, file: Any, name: str) -> Any:
        link = file.get(name, getlink=True)
        if link is None:
            raise self._error(
                f"has no dataset {name}; has {', '.join(sorted(map(str, file))[:12]) or 'nothing'}"
            )
        if isinstance(link, h5py.ExternalLink):
            raise self._error(f"{name} leads to another file, which isn't followed")
        result = file[name]
        if not isinstance(result, h5py.Dataset):
            raise self._error(f"{name} is not a dataset")
        if result.external or result.is_virtual or result.file.id != file.id:
            raise self._error(f"{name} is stored in other files, which aren't read")
        if result.dtype.kind not in "iuf":
            raise self._error(f"{name} has type {result.dtype}; must be numbers")
        return result

    def _error(self, reason: str) -> CohortError:
        return CohortError(f"{self.path}: {reason}")

    # -- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Pairs in the file."""
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": 0}

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was opened.

        Raises:
            CohortError: it was written to, or replaced.
        """
        if self.hash != file_hash(self.path):
            raise changed(self.path)

    def _opened(self) -> Any:
        if self._file is None or self._process != os.getpid():
            # What a parent opened before a fork is left to it.
            self._file = h5py.File(self.path, "r", locking="best-effort")
            self._process = os.getpid()
        return self._file

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self._error(f"can't be read as HDF5: {reason}") from error

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def read(self, index: int, fields: bool = True) -> StoredPair:
        """A pair.

        Args:
            index: 0 to n - 1.
            fields: whether they are read too, if the store has any.

        Raises:
            CohortError: the pair can't be read, or a field isn't finite or is larger than
                the image.
        """
        with self._reading():
            file = self._opened()
            moving = np.asarray(file["img"][index])
            arrays: list[np.ndarray | None] = [None, None]
            if fields and self.has_fields:
                arrays = [_to_house(file[name][index]) for name in self.fields]
            reference = self._reference(file, index)
        for name, field in zip(self.fields, arrays, strict=True):
            if field is not None:
                self._check_field(name, index, field)
        return StoredPair(moving, reference, *arrays)

    def _reference(self, file: Any, index: int) -> np.ndarray | None:
        if self.extra["ref"]:
            return np.asarray(file["ref"][index])
        return None if self.volume is None else self.volume.at(int(self.numbers["p"][index]))

    def _check_field(self, name: str, index: int, field: np.ndarray) -> None:
        wrong = int(field.size - np.isfinite(field).sum())
        if wrong:
            raise self._error(f"{name}[{index}] of shape {field.shape} has {wrong} values that "
                              "aren't finite")  # fmt: skip
        largest = np.abs(field).reshape(len(field), -1).max(1)
        if (largest > self.shape).any():
            raise self._error(
                f"{name}[{index}] moves by up to {largest.max():.4g} pixels, more than an image of "
                f"{' x '.join(map(str, self.shape))} has; fields are in pixels"
            )

    def extras(self, index: int) -> dict[str, np.ndarray]:
        """Labels and landmarks of a pair, where the store has them; landmarks along the axes."""
        result: dict[str, np.ndarray] = {}
        with self._reading():
            file = self._opened()
            for name in _OPTIONAL[1:]:
                if self.extra[name]:
                    values = np.asarray(file[name][index])
                    if name.endswith("landmarks"):
                        values = values.astype(np.float64)
                        values = values[:, ::-1] if len(self.shape) == 2 else values
                    result[name] = np.ascontiguousarray(values)
        return result

    def require_references(self) -> None:
        """Refuse a store whose pairs have no reference.

        Raises:
            CohortError: there is none.
        """
        if not self.extra["ref"] and self.volume is None:
            raise self._error(
                "has neither ref nor reference; name the volume of reference sections by the "
                "setting reference"
            )

    def identity(self, indexes: Sequence[int]) -> str:
        """SHA-256 over the file, the references and the pairs that are used."""
        volume = "" if self.volume is None or self.extra["ref"] else self.volume.identity()
        text = f"{self.hash} {volume} {list(indexes)}"
        return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------


class PairWriter:
    """Datasets of a store that is being written; see `write_store`."""

    def __init__(self, file: Any, count: int, shape: Sequence[int]) -> None:
        self.file = file
        self.fields = field_names_of(len(shape))
        image = (count, *shape)
        for name in ("img", "ref"):
            file.create_dataset(name, image, "u1", chunks=(1, *shape))
        for name in self.fields:
            file.create_dataset(name, (*image, len(shape)), "f4", chunks=(1, *shape, len(shape)))
        for name in _IDENTIFIERS:
            file.create_dataset(name, (count,), "i8")

    def write(
        self,
        index: int,
        moving: np.ndarray,
        reference: np.ndarray,
        field: np.ndarray,
        inverse: np.ndarray,
        **numbers: int,
    ) -> None:
        """Write a pair.

        Args:
            index: its place.
            moving: ``(*shape)`` uint8.
            reference: ``(*shape)`` uint8.
            field: ``(d, *shape)`` pixels, channel i along axis i.
            inverse: the same, back.
            numbers: ``p``, ``image_id``, ``dataset_id``.
        """
        self.file["img"][index] = moving
        self.file["ref"][index] = reference
        for name, one in zip(self.fields, (field, inverse), strict=True):
            self.file[name][index] = to_store(one)
        for name, value in numbers.items():
            self.file[name][index] = value


@contextmanager
def write_store(
    path: str | Path, count: int, shape: Sequence[int], about: str = ""
) -> Iterator[PairWriter]:
    """A new store, published when the block succeeds; an earlier one stays until then.

    Args:
        path: of the file.
        count: pairs.
        shape: of an image.
        about: what made it, kept as the attribute ``about``.

    Raises:
        StorageError: it can't be written, or doesn't fit.
    """
    voxels = count * math.prod(shape)
    check_space({Path(path).absolute().parent: {"images": 2 * voxels,
                                                "fields": 8 * len(shape) * voxels}})  # fmt: skip
    with write_whole(path) as staged, h5py.File(staged, "w") as file:
        file.attrs["about"] = about
        yield PairWriter(file, count, shape)
