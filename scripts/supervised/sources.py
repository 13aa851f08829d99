"""Sources of pairs: reference images of any kind, an earlier store, or a published atlas."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import gaussian_filter, map_coordinates

from scripts.cohort.patterns import subject_in
from scripts.errors import CohortError, ConfigurationError
from scripts.pairwise.network_grid import between_0_and_1
from scripts.runtime.input_files import check_file, check_fits, say
from scripts.runtime.inside import inside
from scripts.settings.checks import check_relative
from scripts.settings.make_pairs import MakePairsConfig
from scripts.spatial.volumes import read_volume
from scripts.spatial.zarr_folders import check_zarr, check_zarr_array
from scripts.supervised.pair_store import PairStore
from scripts.supervised.reference_volume import read_array_file, to_bytes

__all__ = [
    "ImageSource",
    "SourcePair",
    "StoreSource",
    "open_source",
    "reference_paths",
    "resized",
]

_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class SourcePair:
    """The source of one pair.

    Attributes:
        reference: ``(*shape)`` uint8.
        moving: the image that is deformed, ``(*shape)`` uint8.
        field: displacement from the reference to it; None: it is aligned.
        inverse: the field back.
        p: position, micrometres.
        image_id: number of the image.
        dataset_id: number of the specimen.
    """

    reference: np.ndarray
    moving: np.ndarray
    field: np.ndarray | None
    inverse: np.ndarray | None
    p: int
    image_id: int
    dataset_id: int


@dataclass(frozen=True, eq=False)
class _Item:
    image: np.ndarray
    p: int
    image_id: int
    dataset_id: int


class ImageSource:
    """Reference images, all of one size.

    Args:
        items: the images.
    """

    def __init__(self, items: Sequence[_Item]) -> None:
        self.items = list(items)
        self.shape = self.items[0].image.shape

    def __len__(self) -> int:
        """Images."""
        return len(self.items)

    def check_unchanged(self) -> None:
        """Nothing to do: all images were read once, and are in memory."""

    def __getitem__(self, index: int) -> SourcePair:
        """An image as a pair of itself."""
        item = self.items[index]
        return SourcePair(
            item.image, item.image, None, None, item.p, item.image_id, item.dataset_id
        )


class StoreSource:
    """Pairs of an earlier store.

    Args:
        store: with references and fields.
        indexes: which of its pairs; None: all.
    """

    def __init__(self, store: PairStore, indexes: Sequence[int] | None = None) -> None:
        store.require_references()
        self.store = store
        self.indexes = list(range(len(store)) if indexes is None else indexes)
        self.shape = store.shape

    def __len__(self) -> int:
        """Pairs."""
        return len(self.indexes)

    def check_unchanged(self) -> None:
        """See `PairStore.check_unchanged`."""
        self.store.check_unchanged()

    def __getitem__(self, index: int) -> SourcePair:
        """A pair with its fields."""
        place = self.indexes[index]
        pair, numbers = self.store.read(place), self.store.numbers
        assert pair.reference is not None
        return SourcePair(
            to_bytes(pair.reference), pair.moving, pair.field, pair.inverse,
            *(int(numbers[name][place]) for name in ("p", "image_id", "dataset_id")),
        )  # fmt: skip


def resized(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An image resampled to another size, corner to corner; smoothed first where it shrinks.

    Args:
        image: ``(*source)`` uint8.
        shape: wanted.
    """
    if image.shape == tuple(shape):
        return image
    ratio = np.array(image.shape) / np.array(shape)
    sigma = 0.5 * np.sqrt(np.maximum(ratio, 1) ** 2 - 1)
    smooth = gaussian_filter(image.astype(np.float32), sigma, mode="nearest")
    # Centres of voxels: x of the new one lies at (x + 1/2) ratio - 1/2 of the old one.
    lines = [(np.arange(n) + 0.5) * r - 0.5 for n, r in zip(shape, ratio, strict=True)]
    places = np.stack(np.meshgrid(*lines, indexing="ij"))
    result = map_coordinates(smooth, places, order=1, mode="nearest")
    return np.rint(np.clip(result, 0, 255)).astype(np.uint8)


def reference_paths(settings: MakePairsConfig) -> list[Path]:
    """The files and folders that ``reference`` names.

    Raises:
        CohortError: a path with ``*`` names none.
    """
    return [Path(path) for text in settings.reference for path in _expanded(text)]


def open_source(settings: MakePairsConfig) -> ImageSource | StoreSource:
    """The images or pairs that the settings name.

    Raises:
        CohortError: something can't be read, is constant, or differs in size.
        ConfigurationError: the settings don't fit what was found.
    """
    paths = reference_paths(settings)
    stores = [path for path in paths if path.suffix.lower() in (".h5", ".hdf5")]
    if stores:
        if len(paths) > 1:
            raise ConfigurationError(
                f"make_pairs.reference = {settings.reference}: an earlier store must be the only "
                "entry"
            )
        if settings.shape is not None:
            raise ConfigurationError(
                "make_pairs.shape is for images; the pairs of a store keep their size"
            )
        store = PairStore(stores[0])
        return StoreSource(store, chosen(settings.indexes, len(store), "make_pairs.indexes"))
    items: list[_Item] = []
    specimens = _specimens(paths, settings.specimen)
    for specimen, path in zip(specimens, paths, strict=True):
        for number, (name, values) in enumerate(_images_of(path, settings)):
            image = _as_bytes(name, values, settings.log_share)
            if settings.shape is not None:
                if image.ndim != len(settings.shape):
                    raise ConfigurationError(
                        f"make_pairs.shape = {settings.shape}: {name} has {image.ndim} dimensions"
                    )
                image = resized(image, settings.shape)
            if items and items[0].image.shape != image.shape:
                raise CohortError(
                    f"{name}: has shape {image.shape}, the first image has "
                    f"{items[0].image.shape}; give one size for all with make_pairs#shape"
                )
            position = number * settings.section_step if image.ndim == 2 else 0
            items.append(_Item(image, position, len(items), specimen))
    if not items:
        raise CohortError(f"no image at {', '.join(settings.reference)}")
    wanted = chosen(settings.indexes, len(items), "make_pairs.indexes")
    return ImageSource(items if wanted is None else [items[i] for i in wanted])


def _specimens(paths: Sequence[Path], pattern: str | None) -> list[int]:
    """Number of the specimen that each file is of.

    Raises:
        CohortError: a file has another name than the pattern says.
    """
    if pattern is None:
        return list(range(len(paths)))
    numbers: dict[str, int] = {}
    result = []
    for path in paths:
        stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
        subject = subject_in(pattern, stem)
        if subject is None:
            raise CohortError(f"{path}: is not named as make_pairs.specimen = {pattern!r} says")
        result.append(numbers.setdefault(subject, len(numbers)))
    return result


def chosen(indexes: Sequence[int] | str | None, count: int, key: str) -> list[int] | None:
    """Numbers of a list or of a ``.npy`` file, each below ``count``.

    Raises:
        ConfigurationError: one isn't.
        CohortError: the file can't be read.
    """
    if indexes is None:
        return None
    if isinstance(indexes, str):
        values = read_array_file(Path(indexes))
        if values.dtype == bool and values.ndim == 1:
            values = np.flatnonzero(values)
        if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
            raise CohortError(
                f"{indexes}: must be one list of whole numbers, has {values.dtype} of shape "
                f"{values.shape}"
            )
        numbers = [int(one) for one in values]
    else:
        numbers = list(indexes)
    beyond = [one for one in numbers if not 0 <= one < count]
    if beyond:
        raise ConfigurationError(f"{key} has {beyond[0]}: must be 0 to {count - 1}")
    return numbers


def _expanded(text: str) -> list[str]:
    """The files that a path with ``*`` stands for, in order."""
    if "*" not in text:
        return [text]
    result = sorted(glob.glob(text), key=_natural)  # noqa: PTH207
    if not result:
        raise CohortError(f"{text}: no file has such a name")
    return result


def _natural(text: object) -> list[object]:
    """Names in the order of the numbers in them."""
    parts = re.split(r"([0-9]+)", str(text))
    return [int(part) if part.isdecimal() else part for part in parts]


def _images_of(path: Path, settings: MakePairsConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of each image of a path."""
    name = path.name.lower()
    if path.is_dir() and not _is_zarr(path):
        yield from _folder(path)
        return
    if path.is_dir():
        values, dims = _read_zarr(path, settings.array), settings.dims or 2
    elif name.endswith(_NIFTI):
        channels, grid = read_volume(path)
        if grid.header.get_data_dtype() == np.uint8 and not (channels % 1).any():
            channels = channels.clip(0, 255).astype(np.uint8)  # unchanged
        if len(channels) != 1:
            raise CohortError(f"{path}: has {len(channels)} channels; must have one")
        values = channels[0][..., 0] if channels.shape[-1] == 1 else channels[0]
        dims = settings.dims or values.ndim
    elif name.endswith((".npz", ".npy")):
        values, dims = read_array_file(path, settings.array), settings.dims or 2
    elif name.endswith(_IMAGES):
        values, dims = _read_image(path), 2
    else:
        check_file(path)
        raise CohortError(
            f"{path}: is not a known kind of image; must be NIfTI, .npz, .npy, a store (.h5), "
            f"an image file ({', '.join(_IMAGES)}), a folder of them, or an OME-Zarr group"
        )
    if values.dtype.kind not in "iufb":
        raise CohortError(f"{path}: has {values.dtype} values; must be numbers")
    if values.ndim not in (2, 3) or dims > values.ndim:
        raise CohortError(
            f"{path}: has shape {values.shape}; must be an image or a volume"
            + (" (make_pairs.dims = 3)" if dims == 3 else "")
        )
    if values.ndim == dims:
        yield str(path), values
        return
    for number, section in enumerate(np.moveaxis(values, settings.axis, 0)):
        yield f"{path}: section {number}", section


def _folder(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    paths = sorted(
        (one for one in path.iterdir() if one.name.lower().endswith(_IMAGES)),
        key=lambda one: _natural(one.name),
    )
    if not paths:
        raise CohortError(f"{path}: contains no image ({', '.join(_IMAGES)})")
    for one in paths:
        yield str(one), _read_image(one)


def _read_image(path: Path) -> np.ndarray:
    """An image's luminance ``(rows, columns)``."""
    check_fits(path, 8 * check_file(path).st_size)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise CohortError(f"{path}: has {pages} pages; must have one")
            deep = image.mode.startswith(("I", "F"))
            return np.asarray(image if deep else image.convert("L"))
    except (
        OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise CohortError(f"{path}: can't be read as an image: {say(error)}") from error


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _read_zarr(path: Path, name: str | None) -> np.ndarray:
    """The array of full resolution of an OME-Zarr group, or the one that is named."""
    try:
        import zarr
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: reading OME-Zarr needs the package zarr, which isn't installed"
        ) from error
    check_zarr(path)
    try:
        opened: Any = zarr.open(str(path), mode="r")
        alone = hasattr(opened, "shape")
        array = opened if alone else opened[_level(path, dict(opened.attrs), name)]
        store = inside(path, array.path, kind="folder") if array.path else path
        check_zarr_array(store, array)
        shape = tuple(int(n) for n in array.shape)
        while len(shape) > 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) not in (2, 3):
            raise CohortError(f"{path}: has shape {tuple(array.shape)}; must be a volume")
        check_fits(path, 3 * int(np.prod(shape)) * int(array.dtype.itemsize))
        return np.asarray(array[...]).reshape(shape)
    except CohortError:
        raise
    except Exception as error:  # zarr's stores and codecs raise many kinds
        raise CohortError(f"{path}: can't be read as OME-Zarr: {say(error)}") from error


def _level(path: Path, attributes: dict[str, Any], name: str | None) -> str:
    if name is None:
        about = attributes.get("ome", attributes)
        try:
            name = str(about["multiscales"][0]["datasets"][0]["path"])
        except (KeyError, IndexError, TypeError) as error:
            raise CohortError(
                f"{path}: has no OME metadata; name its array with make_pairs#array"
            ) from error
    try:
        check_relative(name)
    except ValueError as error:
        raise CohortError(f"{path}: the array {name!r} {error}") from error
    return name


def _as_bytes(name: str, values: np.ndarray, log_share: float | None) -> np.ndarray:
    """An image as uint8, checked."""
    if not np.isfinite(values).all():
        raise CohortError(f"{name}: is not finite everywhere")
    if not np.ptp(values) > 0:
        raise CohortError(f"{name}: is constant: no displacement can be learned from it")
    if values.dtype == np.uint8 and log_share is None:
        return np.ascontiguousarray(values)
    return np.rint(255 * between_0_and_1(np.asarray(values), log_share)).astype(np.uint8)
