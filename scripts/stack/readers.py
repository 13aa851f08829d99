"""Sections one by one, from zarr, NIfTI, image files and multi-page TIFF."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from scripts.errors import CohortError, ConfigurationError
from scripts.runtime.file_names import ending_of, is_image_name
from scripts.runtime.gzip_files import GZIP_START
from scripts.runtime.input_files import check_file, check_fits, say
from scripts.runtime.inside import inside
from scripts.settings.stack import UNITS
from scripts.spatial.image_files import open_image_file, warn_of_remarks
from scripts.spatial.zarr_folders import check_zarr, check_zarr_array
from scripts.stack.libraries import require
from scripts.stack.ome_metadata import ArrayMetadata, Multiscale, read_multiscale

__all__ = [
    "FolderSections",
    "NiftiSections",
    "SectionReader",
    "TiffSections",
    "ZarrSections",
    "open_reader",
]

logger = logging.getLogger(__name__)

_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
_COLOURS = (3, 4)


class SectionReader(Protocol):
    """Where sections come from; a small object that other processes can be given.

    Attributes:
        spacing: z, y, x; None if the files have none.
        unit: of the spacing; None if they have none.
        affine: ``(4, 4)`` of a NIfTI volume, else None.
    """

    spacing: tuple[float, float, float] | None
    unit: str | None
    affine: np.ndarray | None

    @property
    def names(self) -> Sequence[str]:
        """Of the sections, in order."""
        ...

    def read(self, index: int) -> np.ndarray:
        """A section, ``(rows, columns)`` or ``(rows, columns, channels)``."""
        ...


def open_reader(path: str | Path, array: str | None, axis: int, key: str) -> SectionReader:
    """The reader for the input at a path.

    Args:
        path: of the sections.
        array: path inside a zarr group.
        axis: of a NIfTI volume, along which the sections follow each other.
        key: the block of settings, for messages.

    Raises:
        CohortError: nothing is there, or its format is unknown.
        ConfigurationError: ``array`` for something else than zarr.
    """
    place = Path(path)
    name = place.name.lower()
    if not place.exists():
        raise CohortError(f"{place}: no such file or folder ({key}.stack)")
    is_zarr = place.is_dir() and (
        name.endswith(".zarr")
        or any((place / entry).exists() for entry in ("zarr.json", ".zgroup", ".zarray"))
    )
    if array is not None and not is_zarr:
        raise ConfigurationError(f"{key}.array = {array!r}: {place} is not a zarr group")
    if is_zarr:
        return ZarrSections.open(place, array, key)
    if place.is_dir():
        return FolderSections.open(place)
    if is_image_name(place):
        return NiftiSections.open(place, axis)
    if name.endswith(_TIFF):
        return TiffSections.open(place)
    raise CohortError(
        f"{place}: is not a known kind of stack; must be a zarr folder, a folder of images "
        f"({', '.join(_IMAGES)}), a NIfTI or MGH volume, or a multi-page TIFF"
    )


def natural(name: str) -> tuple[Any, ...]:
    """Key of the natural order, in which 2 comes before 10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


@dataclass
class ZarrSections:
    """Sections of a zarr array, of version 2 or 3.

    Attributes:
        store: folder of the array.
        count: of the sections.
        plan: what each axis of the array is: z, y, x, c or t.
    """

    store: Path
    count: int
    plan: str
    spacing: tuple[float, float, float] | None
    unit: str | None
    affine: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path, array: str | None, key: str) -> ZarrSections:
        """Find the array.

        Raises:
            CohortError: there is none, or not of three dimensions.
        """
        zarr = require("zarr")
        check_zarr(path)
        try:
            node = zarr.open(str(path), mode="r")
            described: ArrayMetadata | None = None
            if not isinstance(node, zarr.Array):
                node, described = _array_of(zarr, node, path, array, key)
            elif array is not None:
                raise CohortError(f"{path}: is an array itself, {key}.array must be null")
            attributes = dict(node.attrs)
            store = path if not node.path else inside(path, node.path, kind="folder")
            check_zarr_array(store, node)
        except CohortError:
            raise
        except Exception as error:  # zarr raises errors of many kinds on damaged metadata
            raise CohortError(f"{path}: can't be read as zarr: {say(error)}") from error
        plan = _plan(node.shape, described, path)
        try:
            spacing, unit = _zarr_spacing(attributes, described)
        except ValueError as error:
            raise CohortError(f"{path}: {error}") from error
        return cls(store, int(node.shape[plan.index("z")]), plan, spacing, unit)

    @property
    def names(self) -> Sequence[str]:
        """Numbers."""
        return [f"{index:04d}" for index in range(self.count)]

    def read(self, index: int) -> np.ndarray:
        """A section."""
        place = tuple({"z": index, "t": 0}.get(axis, slice(None)) for axis in self.plan)
        array = require("zarr").open_array(str(self.store), mode="r")
        values = np.asarray(array[place])
        rest = [axis for axis in self.plan if axis not in "zt"]
        values = values.transpose([rest.index(axis) for axis in "yxc" if axis in rest])
        return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _array_of(
    zarr: Any, group: Any, path: Path, array: str | None, key: str
) -> tuple[Any, ArrayMetadata | None]:
    """The selected array of a group, and its metadata."""
    if array is None:
        image = _multiscale(group, path)
        if image is not None:
            return group[image.arrays[0].path], image.arrays[0]
        arrays = [name for name, _ in group.arrays()]
        if len(arrays) == 1:
            return group[arrays[0]], None
        raise CohortError(
            f"{path}: is a group without multiscales and with "
            f"{', '.join(sorted(arrays)) if arrays else 'no array'}; name the array "
            f"with {key}#array"
        )
    if array not in group or not isinstance(group[array], zarr.Array):
        raise CohortError(f"{path}: has no array {array!r} ({key}.array)")
    parts = array.split("/")
    for depth in range(len(parts)):
        holder = group if depth == 0 else group["/".join(parts[:depth])]
        image = _multiscale(holder, path)
        described = None if image is None else image.of("/".join(parts[depth:]))
        if described is not None:
            return group[array], described
    return group[array], None


def _multiscale(group: Any, path: Path) -> Multiscale | None:
    try:
        return read_multiscale(dict(group.attrs))
    except ValueError as error:
        raise CohortError(f"{path}: {error}") from error


def _plan(shape: Sequence[int], described: ArrayMetadata | None, path: Path) -> str:
    """What each axis is."""
    shown = "x".join(str(n) for n in shape)
    if described is not None:
        plan = "".join(described.axes) if all(len(a) == 1 for a in described.axes) else ""
        if len(plan) == len(shape) and set("zyx") <= set(plan) <= set("tczyx"):
            if "t" in plan and shape[plan.index("t")] != 1:
                raise CohortError(f"{path}: has {shape[plan.index('t')]} times; must have one")
            return plan
        raise CohortError(
            f"{path}: is not a 3-D stack: its axes are {', '.join(described.axes)} ({shown}); "
            "must be z, y, x, with at most one channel axis and one time"
        )
    if len(shape) == 3:
        return "zyx"
    if len(shape) == 4 and shape[3] in _COLOURS:
        return "zyxc"
    if len(shape) == 4 and shape[0] in _COLOURS:
        return "czyx"
    raise CohortError(
        f"{path}: is not a 3-D array: its shape is {shown}; must be sections, rows, columns, and 3 "
        "or 4 colours at most"
    )


def _zarr_spacing(
    attributes: dict[str, Any], described: ArrayMetadata | None
) -> tuple[tuple[float, float, float] | None, str | None]:
    unit = described.unit() if described is not None else None
    if isinstance(attributes.get("unit"), str) and attributes["unit"] in UNITS:
        unit = attributes["unit"]
    given = attributes.get("spacing")
    if given is not None:
        try:
            z, y, x = (float(value) for value in given)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"its attribute spacing is {given!r}; must be z, y, x") from error
        return (z, y, x), unit
    return (described.spacing() if described is not None else None), unit


@dataclass
class NiftiSections:
    """Sections of a NIfTI volume; rows and columns are its later and its earlier axis.

    A volume of axes X, Y, Z cut along Z has sections with rows Y and columns X. The whole file
    is in memory where it is compressed, for sections can't be unpacked one by one.
    """

    path: Path
    axis: int
    count: int
    spacing: tuple[float, float, float] | None
    unit: str | None
    affine: np.ndarray | None
    stored: tuple[Any, ...] | None = None

    @classmethod
    def open(cls, path: Path, axis: int) -> NiftiSections:
        """Read the header.

        Raises:
            CohortError: the file can't be read, or is not a volume.
        """
        opened = open_image_file(path)
        warn_of_remarks(path, opened)
        image = opened.image
        shape = image.shape
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if len(shape) != 3 and not (len(shape) == 4 and shape[3] in _COLOURS):
            raise CohortError(
                f"{path}: is not a 3-D volume: its shape is {'x'.join(map(str, shape))}"
            )
        if image.get_data_dtype().kind not in "iuf":
            raise CohortError(f"{path}: has {image.get_data_dtype()} values; must be real numbers")
        affine = np.asarray(image.affine)
        zooms = np.linalg.norm(affine[:3, :3], axis=0)
        columns, rows = (other for other in range(3) if other != axis)
        units = {"mm": "millimeter", "micron": "micrometer", "meter": "meter"}
        return cls(
            path, axis, int(shape[axis]),
            (float(zooms[axis]), float(zooms[rows]), float(zooms[columns])),
            units.get(image.header.get_xyzt_units()[0]), affine, _stored(path, image),
        )  # fmt: skip

    @property
    def names(self) -> Sequence[str]:
        """Numbers."""
        return [f"{index:04d}" for index in range(self.count)]

    def read(self, index: int) -> np.ndarray:
        """A section."""
        place = tuple(index if axis == self.axis else slice(None) for axis in range(3))
        status = self.path.stat()
        volume = _volume(self.path, self.stored, status.st_mtime_ns, status.st_size)
        values = np.asarray(volume[place])
        values = values.swapaxes(0, 1)
        return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _stored(path: Path, image: nib.Nifti1Image) -> tuple[Any, ...] | None:
    """Shape, type, start and scaling of the voxels in a file that isn't packed, else None."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_START
    if packed or ending_of(path).startswith((".img", ".hdr")):
        return None
    proxy: Any = image.dataobj
    return tuple(proxy.shape), proxy.dtype, proxy.offset, proxy.slope, proxy.inter


@lru_cache(maxsize=1)
def _volume(path: Path, stored: tuple[Any, ...] | None, changed: int, size: int) -> Any:
    """The values of a file, unpacked once or mapped; ``changed`` and ``size`` are the file's."""
    if stored is None:
        return open_image_file(path).image.dataobj
    return ArrayProxy(str(path), stored, mmap=True)


@dataclass
class FolderSections:
    """Image files of a folder, in natural order."""

    files: tuple[Path, ...]
    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    affine: np.ndarray | None = None

    @classmethod
    def open(cls, folder: Path) -> FolderSections:
        """List the images.

        Raises:
            CohortError: there is none.
        """
        entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
        shown = [path for path in entries if not path.name.startswith(".") and path.is_file()]
        files = [path for path in shown if path.suffix.lower() in _IMAGES]
        if not files:
            raise CohortError(
                f"{folder}: contains no zarr array and no image ({', '.join(_IMAGES)})"
            )
        others = [path.name for path in shown if path not in files]
        if others:
            logger.info("%s: ignored: %s", folder, ", ".join(others[:10]))
        return cls(tuple(files))

    @property
    def names(self) -> Sequence[str]:
        """The files' names without their endings."""
        return [path.stem for path in self.files]

    def read(self, index: int) -> np.ndarray:
        """A section."""
        path = self.files[index]
        check_file(path)
        if path.suffix.lower() in _TIFF:
            with require("tifffile").TiffFile(path) as file:
                if len(file.pages) != 1:
                    raise ValueError(f"has {len(file.pages)} pages; a file of a folder has one")
                return _colours_last(_page(path, file.pages[0]))
        return _colours_last(require("imageio.v3").imread(path, extension=path.suffix.lower()))


@dataclass
class TiffSections:
    """The pages of a TIFF."""

    path: Path
    count: int
    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    affine: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path) -> TiffSections:
        """Count the pages.

        Raises:
            CohortError: the file can't be read.
        """
        check_file(path)
        try:
            with require("tifffile").TiffFile(path) as file:
                return cls(path, len(file.pages))
        except ConfigurationError:
            raise
        except Exception as error:  # tifffile raises errors of many kinds on damaged files
            raise CohortError(f"{path}: can't be read as TIFF: {say(error)}") from error

    @property
    def names(self) -> Sequence[str]:
        """Numbers."""
        return [f"{index:04d}" for index in range(self.count)]

    def read(self, index: int) -> np.ndarray:
        """A section."""
        with require("tifffile").TiffFile(self.path) as file:
            return _colours_last(_page(self.path, file.pages[index]))


def _page(path: Path, page: Any) -> np.ndarray:
    """The values of a TIFF's page, whose header may claim any size.

    Raises:
        FileError: it doesn't fit into memory.
    """
    check_fits(path, 2 * page.nbytes)
    return np.asarray(page.asarray())


def _colours_last(values: np.ndarray) -> np.ndarray:
    """``(rows, columns[, channels])`` of an image whose colours may come first."""
    if values.ndim == 3 and values.shape[0] in _COLOURS and values.shape[2] not in _COLOURS:
        values = np.moveaxis(values, 0, -1)
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
