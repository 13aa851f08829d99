"""Images as input of networks for pairs: on one centred grid, between 0 and 1; and folds."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.transforms import Compose, MapTransform

from scripts.cohort import Candidate, Rejection, find_subjects
from scripts.cohort.density import DensityError, load_density
from scripts.cohort.discovery import advice_where_maps_are
from scripts.cohort.runs import warn_of_one_person
from scripts.data.sampling import RepeatedDataset
from scripts.engines.opening import check_earlier_files, reserved
from scripts.errors import CohortError
from scripts.networks.precision import open_device
from scripts.pairwise.network_grid import WorkingGrid, between_0_and_1
from scripts.runtime.input_files import check_named
from scripts.runtime.watched_files import changed
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.elastic import LearnedElasticConfig
from scripts.settings.pairwise import PairImagesConfig
from scripts.spatial.grid import Grid

__all__ = [
    "ImageSubject",
    "OntoNetworkGridd",
    "PairImages",
    "open_images",
    "pair_dataset",
    "read_image",
    "read_pair_images",
]

logger = logging.getLogger(__name__)

_LAYOUTS = get_args(PairImagesConfig.model_fields["layout"].annotation)
_FOLD_SEED = 0  # independent of the training's seed, so that runs of a sweep can be compared


def read_image(paths: Sequence[str | Path], dims: int | None = None) -> tuple[np.ndarray, Grid]:
    """One image, or the sum of several on one grid; float64, and its grid.

    Args:
        paths: NIfTI files.
        dims: 2 or 3, to check the number of dimensions.

    Raises:
        CohortError: a file can't be read, isn't finite, is constant, is on another grid than the
            first, or has another number of dimensions; the message names it.
    """
    total: np.ndarray | None = None
    grid: Grid | None = None
    for one in map(Path, paths):
        loaded = load_density(one)
        if not np.isfinite(loaded.data).all():
            count = int(loaded.data.size - np.isfinite(loaded.data).sum())
            raise DensityError(one, f"is not finite in {count} voxels; set them to 0 first")
        if dims is not None and loaded.data.ndim != dims:
            raise DensityError(
                one,
                f"has {loaded.data.ndim} dimensions, images.shape of the settings has {dims}",
            )
        if grid is None or total is None:
            grid, total = loaded.grid, loaded.data.copy()
        elif (difference := loaded.grid.same_as(grid)) is not None:
            raise DensityError(one, f"is not on the grid of {paths[0]}: {difference}")
        else:
            total += loaded.data
    if grid is None or total is None:
        raise CohortError("no image to read")
    if not np.ptp(total) > 0:
        raise DensityError(
            Path(paths[0]),
            f"is constant ({total.flat[0]:g} everywhere): it can't be aligned",
        )
    return total, grid


def check_labels(path: Path, grid: Grid, dims: int) -> None:
    """Check that a label map has whole numbers and lies on the grid of its image.

    Raises:
        CohortError: it can't be read, or doesn't; the message names it.
    """
    values, label_grid = read_image([path], dims)
    if not np.array_equal(values, np.round(values)):
        raise DensityError(path, "is not a label map: its values are not whole numbers")
    if (difference := label_grid.same_as(grid)) is not None:
        raise DensityError(path, f"is not on the grid of its image: {difference}")


class OntoNetworkGridd(MapTransform):
    """Reads images and resamples them to the network's grid.

    Args:
        keys: of lists of paths.
        grid: of the network.
        log_share: see `PairImagesConfig`.
    """

    def __init__(
        self, keys: KeysCollection, grid: WorkingGrid, log_share: float | None = None
    ) -> None:
        super().__init__(keys)
        self.grid = grid
        self.log_share = log_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths by ``(1, *shape)`` float32 from 0 to 1."""
        result = dict(data)
        for key in self.key_iterator(result):
            image, grid = read_image(result[key], len(self.grid.shape))
            result[key] = self.grid.of_image(between_0_and_1(image, self.log_share), grid.affine)
        result.pop("channel", None)  # has another length for each subject, so can't be collated
        return result


@dataclass(frozen=True)
class ImageSubject:
    """A subject's files.

    Attributes:
        name: of the subject, or of one of a person's images.
        paths: what the network learns from.
        channels: the channel (tract) of each.
        sha256: digest of the bytes of all files.
        person: whose image it is; empty: the subject's name.
        image: files of the image that ``labels`` belong to.
        labels: its label map; None without any.
    """

    name: str
    paths: tuple[str, ...]
    channels: tuple[int, ...]
    sha256: str
    person: str = ""
    image: tuple[str, ...] = ()
    labels: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, each once."""
        labels = () if self.labels is None else (self.labels,)
        return tuple(dict.fromkeys((*self.paths, *self.image, *labels)))


@dataclass(frozen=True, eq=False)
class PairImages:
    """The images to learn from, and the network's grid.

    Attributes:
        subjects: the usable ones, sorted by name.
        rejected: subjects left out, with the reason.
        grid: of the network.
        pattern: of their paths.
        folds: number of folds.
        fold: the fold for measurements; None for no measurements.
    """

    subjects: tuple[ImageSubject, ...]
    rejected: tuple[Rejection, ...]
    grid: WorkingGrid
    pattern: str
    folds: int
    fold: int | None

    def fold_of(self) -> dict[str, int]:
        """The fold of each subject, from a fixed random order of persons."""
        persons = list(dict.fromkeys(one.person or one.name for one in self.subjects))
        order = np.random.default_rng(_FOLD_SEED).permutation(len(persons))
        folds = {persons[int(i)]: turn % self.folds for turn, i in enumerate(order)}
        return {one.name: folds[one.person or one.name] for one in self.subjects}

    def training(self) -> list[dict[str, Any]]:
        """Training subjects, as items for dictionary transforms."""
        return self._items(held_out=False)

    def held_out(self) -> list[dict[str, Any]]:
        """Held-out subjects: those of the fold."""
        return self._items(held_out=True)

    def held_out_subjects(self) -> list[ImageSubject]:
        """The same subjects with all their files."""
        folds = self.fold_of()
        return [one for one in self.subjects if folds[one.name] == self.fold]

    def _items(self, held_out: bool) -> list[dict[str, Any]]:
        folds = self.fold_of()
        return [
            {"subject": one.name, "image": list(one.paths), "channel": list(one.channels)}
            for one in self.subjects
            if (folds[one.name] == self.fold) is held_out
        ]

    def check_unchanged(self) -> None:
        """Make sure that all files are still those that were inspected.

        Raises:
            CohortError: naming the subject and a file of its that isn't.
        """
        for one in self.subjects:
            try:
                digest = _digest(map(Path, one.files))
            except OSError as error:
                raise CohortError(f"subject {one.name}: {error}") from error
            if digest != one.sha256:
                raise changed(" or ".join(one.files))

    def identity(self) -> str:
        """SHA-256 of everything that training depends on; independent of the dataset's location."""
        text = json.dumps([asdict(self.grid), [(one.name, one.sha256) for one in self.subjects]])
        return hashlib.sha256(text.encode()).hexdigest()


def read_pair_images(
    dataset_dir: str | Path, settings: LearnedAffineConfig | LearnedElasticConfig
) -> PairImages:
    """Find, read and check images (or label maps), which may be on different grids.

    Raises:
        CohortError: there are too few usable subjects, or fewer than folds.
    """
    check_named(dataset_dir, "dataset_dir")
    root = Path(dataset_dir).absolute()
    search = settings.images.subject_search()
    discovery = find_subjects(root, search)
    labels = _label_maps(root, settings.images, discovery.candidates)
    subjects: list[ImageSubject] = []
    rejected = list(discovery.rejected)
    widest = 0.0
    for candidate in discovery.candidates:
        try:
            subject, extent = _inspect(candidate, settings.images, labels)
        except DensityError as error:
            rejected.append(Rejection(candidate.name, str(error.path), error.reason))
            logger.warning("subject %s is left out: %s", candidate.name, error)
            continue
        subjects.append(subject)
        widest = max(widest, extent)
    needed = max(settings.min_subjects, settings.folds if settings.fold is not None else 1)
    if len(subjects) < needed:
        reasons = [f"  {one.subject}: {one.path}: {one.reason}" for one in rejected]
        why = (
            f"{settings.key_path}.min_subjects = {settings.min_subjects}"
            if needed == settings.min_subjects
            else f"{settings.key_path}.folds = {settings.folds}"
        )
        nothing = not discovery.candidates and not rejected
        advice = advice_where_maps_are(root, search, discovery, _LAYOUTS) if nothing else ""
        raise CohortError(
            f"{len(subjects)} usable images in dataset folder {root} at {discovery.pattern}, fewer "
            f"than {why}{advice} (see {search.option('layout')} and "
            f"{search.option('pattern')})",
            *reasons,
        )
    people = len({one.person or one.name for one in subjects})
    if settings.fold is not None and people < settings.folds:
        raise CohortError(
            f"the {len(subjects)} usable images in dataset folder {root} are of {people} subjects, "
            f"fewer than {settings.key_path}.folds = {settings.folds}; all images of a subject "
            "belong to one fold, so lower the number of folds"
        )
    if settings.fold is not None and not any(one.person for one in subjects):
        warn_of_one_person([one.name for one in subjects], search.option("pattern"))
    spacing = settings.images.spacing or _rounded_up(widest)
    grid = WorkingGrid(tuple(settings.images.shape), spacing)
    logger.info(
        "%d images of %d subjects, %d left out; the network's grid has %s voxels of %g mm",
        len(subjects),
        people,
        len(rejected),
        "x".join(map(str, grid.shape)),
        grid.spacing,
    )
    return PairImages(
        tuple(subjects), tuple(rejected), grid, discovery.pattern, settings.folds, settings.fold
    )


def _label_maps(
    root: Path, settings: PairImagesConfig, candidates: Sequence[Candidate]
) -> dict[str, Path] | None:
    """The label map of each subject that has one, by name; None if none are asked for."""
    if settings.labels is None:
        return None
    apart = any(candidate.run is not None for candidate in candidates)
    discovery = find_subjects(root, settings.label_search(apart))
    return {one.name: one.maps[0].path for one in discovery.candidates}


def _inspect(
    candidate: Candidate, settings: PairImagesConfig, labels: Mapping[str, Path] | None
) -> tuple[ImageSubject, float]:
    """A subject, and the voxel size at which its image fits into the network's grid."""
    shape, dims = settings.shape, len(settings.shape)
    image = tuple(str(one.path) for one in candidate.maps)
    _, grid = read_image(image, dims)
    subject = ImageSubject(
        candidate.name, image, tuple(one.channel for one in candidate.maps), "", candidate.person
    )
    if labels is not None:
        where = labels.get(candidate.name)
        if where is None:
            raise DensityError(Path(image[0]), f"has no label map at {settings.labels}")
        check_labels(where, grid, dims)
        subject = replace(subject, image=image, labels=str(where))
        if settings.learns_labels:
            subject = replace(subject, paths=(str(where),), channels=(0,))
    subject = replace(subject, sha256=_digest(map(Path, subject.files)))
    extent = np.array(grid.shape) * grid.spacing
    if dims == 3:  # along the axes of the world
        directions = np.abs(grid.affine[:3, :3]) / grid.spacing
        extent = directions @ extent
    return subject, float((extent / np.array(shape)).max())


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _rounded_up(value: float, digits: int = 3) -> float:
    """Round to a few significant digits, so that rounding in headers doesn't change the grid."""
    power = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / power - 1e-6) * power:.12g}")


def open_images(
    dataset_dir: str | Path,
    settings: LearnedAffineConfig | LearnedElasticConfig,
    written: Sequence[str | Path] = (),
    replaced: Sequence[str | Path] = (),
) -> PairImages:
    """The images to learn from, after early checks of the device and the output folders.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: folders that the run will write to; locked while the result is in use.
        replaced: what the run clears or replaces there: its run state, model and report.

    Raises:
        ConfigurationError: the machine lacks the device.
        StorageError: a folder can't be written, another run is at work there, or something else
            than an earlier training's files would be replaced.
        CohortError: see `read_pair_images`.
    """
    open_device(settings.device, settings.key("device"))
    with reserved(written) as users:
        check_earlier_files(replaced, [dataset_dir])
        images = read_pair_images(dataset_dir, settings)
        check_earlier_files(replaced, [path for one in images.subjects for path in one.files])
        users.append(images)
    return images


def pair_dataset(data: Sequence[dict[str, Any]], transform: Compose, times: int) -> RepeatedDataset:
    """Images kept in memory (small, on the network's grid), each repeated several times."""
    return RepeatedDataset(CacheDataset(data, transform, progress=False), times)
