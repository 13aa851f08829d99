"""What the configs name: the pieces above, made for a cohort and its settings."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.transforms import Compose

from scripts.atlas.publishing import AtlasPublisher, weights_identity
from scripts.cohort import (
    Cohort,
    NewSubjects,
    parse_values,
    read_cohort,
    read_new_subjects,
)
from scripts.data import EpochBatches, density_dataset, density_transforms
from scripts.engines.exporting import NetworkVelocities, in_box
from scripts.engines.fine_tuning import NetworkFineTuning
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.refinement import CohortRefinement
from scripts.engines.run_state import RunState
from scripts.engines.space import (
    check_cache,
    checkpoint_bytes,
    output_bytes,
    registration_bytes,
)
from scripts.errors import CohortError, ConfigurationError
from scripts.lock import lock_folders
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.atlas_network import AtlasNetwork
from scripts.networks.building import published_coding, published_geometry, published_network
from scripts.networks.checkpoint import load_checkpoint
from scripts.networks.precision import open_device
from scripts.processes import (
    barrier,
    from_first,
    is_first,
    rank,
    share,
    stop_together,
    world_size,
)
from scripts.progress import progress_bar
from scripts.run_log import keep_log
from scripts.settings import LearnedAtlasConfig
from scripts.storage import check_space, check_writable

__all__ = [
    "atlas_loss",
    "cohort_publisher",
    "cohort_refinement",
    "cohort_transforms",
    "network_fine_tuning",
    "open_cohort",
    "open_network",
    "open_new_subjects",
    "open_published_cohort",
    "opened",
    "published_history",
    "published_velocities",
    "reserved",
    "subject_transforms",
    "train_dataset",
]

logger = logging.getLogger(__name__)

Network = TypeVar("Network")


@contextmanager
def reserved(folders: Sequence[str | Path]) -> Iterator[list[object]]:
    """Folders that this run alone writes to, for as long as what the block lists is in use.

    Raises:
        StorageError: if one can't be written, or another run is at work there.
    """
    for folder in folders:
        check_writable(folder)
    # Several processes are one run: the first holds its locks.
    locks = lock_folders(tuple(folders)) if is_first() else []
    users: list[object] = []
    try:
        yield users
        for user in users:
            for lock in locks:
                # Also called at the interpreter's end. A killed run's locks end by themselves.
                weakref.finalize(user, lock.release)
    finally:
        if not users:
            for lock in locks:
                lock.release()


def open_cohort(
    dataset_dir: str | Path,
    settings: LearnedAtlasConfig,
    written: Sequence[str | Path] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> Cohort:
    """Read and check the cohort, after what can be known beforehand of the run's end.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: output_dir and ckpt_dir; they are locked while the result is in use, and the
            run's log is kept in the last one.
        data: a data list as MONAI's tools give it, a mapping a map with its path as ``image``, in
            place of the folder; what else it holds (a ``label``) isn't read.

    Raises:
        ConfigurationError: if the machine lacks the device, or a batch has fewer subjects than
            there are processes.
        StorageError: if something that is no writable folder stands in the way of ``written``,
            another run is at work there, or there isn't room for what the run writes.
        ConfigurationError: also if the cache that is asked for doesn't fit into memory.
        CohortError: see `read_cohort`.
    """
    _check_processes(settings)

    def read() -> Cohort:
        with reserved(written) as users:
            files = None if data is None else _listed_maps(data)
            cohort = read_cohort(dataset_dir, settings, files=files)
            _check_box(cohort)
            _warn_of_scale(cohort, settings)
            check_cache(cohort, settings, world_size())
            if len(written) == 2:
                _check_space(cohort, settings, *map(Path, written))
            users.append(cohort)
            if written:
                keep_log(written[-1])
        return cohort

    return from_first(read)


def _check_processes(settings: LearnedAtlasConfig) -> None:
    """Make sure that each process has its device, and something to do.

    Raises:
        ConfigurationError: if one hasn't.
    """
    error = None
    try:
        open_device(settings.device)
        if settings.optimizer.batch_size < world_size():
            raise ConfigurationError(
                f"learned_atlas.optimizer.batch_size = {settings.optimizer.batch_size}: must be at "
                f"least the number of processes, {world_size()}, which share each batch"
            )
    except ConfigurationError as failure:
        error = failure
    stop_together(error)


def _check_box(cohort: Cohort) -> None:
    """Refuse a box in which a field has no derivative along some axis."""
    if min(cohort.crop.shape) > 1:
        return
    raise CohortError(
        f"the cohort's box has {' x '.join(map(str, cohort.crop.shape))} voxels: a deformation "
        "needs at least 2 along every axis; raise learned_atlas#cohort#margin if the grid has "
        "more, and bring planes as (X, Y) or (X, Y, 1)"
    )


def _listed_maps(data: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Paths of a data list's images."""
    images = [item.get("image") for item in data]
    wrong = [image for image in images if not isinstance(image, str | Path)]
    if wrong:
        raise CohortError(
            f"train#dataset#data names {wrong[0]!r} as an image; each entry must have the path of "
            "one density map as 'image'"
        )
    return [Path(str(image)) for image in images]


def _check_space(
    cohort: Cohort, settings: LearnedAtlasConfig, output_dir: Path, ckpt_dir: Path
) -> None:
    """Refuse a night's work that couldn't be written down."""
    output, kept = output_bytes(cohort, settings), checkpoint_bytes(cohort, settings)
    # An earlier run's files are gone on with or thrown away: their space is the run's own.
    earlier = [path for path in (ckpt_dir / "run_state").rglob("*") if path.is_file()]
    for path in earlier:
        largest = max(kept, key=kept.__getitem__)
        kept[largest] = max(0, kept[largest] - path.stat().st_size)
    both = {**output, **kept}
    same = output_dir.absolute() == ckpt_dir.absolute()
    check_space({output_dir: both} if same else {output_dir: output, ckpt_dir: kept})


def _warn_of_scale(cohort: Cohort, settings: LearnedAtlasConfig) -> None:
    """Say so where a threshold is far from any density that the cohort has."""
    found = cohort.mean_density[cohort.mean_density > 0]
    typical, largest = float(np.median(found)), float(found.max())
    ratio = typical / settings.loss.log_offset
    if not 0.003 < ratio < 300:
        logger.warning(
            "learned_atlas.loss.log_offset = %g is far from this cohort's densities (median of "
            "the mean map %.2g, maximum %.2g): their logarithms are nearly %s; a density that "
            "just counts as present is a good choice",
            settings.loss.log_offset,
            typical,
            largest,
            "alike" if ratio >= 300 else "linear",
        )
    if settings.presence_value >= largest:
        logger.warning(
            "learned_atlas.presence_value = %g is above every mean density (maximum %.2g): "
            "prob_threshold will be almost or wholly 0",
            settings.presence_value,
            largest,
        )


def cohort_transforms(cohort: Cohort, settings: LearnedAtlasConfig, log: bool = True) -> Compose:
    """From a cohort's files to its (log) densities in its box."""
    return density_transforms(
        cohort.normalisation,
        settings.model.channels,
        settings.loss.log_offset if log else None,
        cohort.crop.start,
        cohort.crop.stop,
    )


def train_dataset(
    data: Sequence[Mapping[str, Any]] | None,
    transform: Compose,
    settings: LearnedAtlasConfig,
    cache_dir: str | Path,
    cohort: Cohort | None = None,
) -> Any:
    """The training dataset, cached as the settings say.

    In memory each process keeps the whole cohort, since a batch may bring it any subject. On disk
    the processes share one cache, which they fill together before any of them reads from it.

    Args:
        data: a mapping a subject.
        transform: see `cohort_transforms`.
        settings: of the run.
        cache_dir: for a cache on disk.
        cohort: what `open_cohort` made of ``data``, or found itself: its own list, which knows
            each map's divisor and channel as well, takes the place of ``data``.
    """
    listed = data if cohort is None else cohort.datalist()
    dataset = density_dataset(
        listed or [],
        transform,
        cache=settings.cohort.cache,
        cache_dir=cache_dir,
        device=settings.device,
        num_workers=settings.cohort.num_workers,
    )
    if settings.cohort.cache == "disk" and world_size() > 1:
        for index in share(len(dataset)):
            dataset[index]
        barrier()
    return dataset


def atlas_loss(spacing: Sequence[float], settings: LearnedAtlasConfig) -> AtlasLoss:
    """The weighted loss that the settings ask for."""
    return AtlasLoss(
        spacing,
        settings.model.field_resolution,
        settings.loss.similarity_weight,
        settings.loss.presence_weight,
        settings.loss.smoothness_weight,
        settings.loss.centrality_weight,
        settings.loss.window,
        settings.loss.scales,
    )


def cohort_refinement(
    network: AtlasNetwork,
    dataset: Sequence[dict[str, Any]],
    loss: AtlasLoss,
    folder: str | Path,
    settings: LearnedAtlasConfig,
    cohort: Cohort | None = None,
) -> CohortRefinement:
    """The refinement that the settings ask for; covariates, where asked for, come by ``cohort``."""
    return CohortRefinement(
        network,
        dataset,
        loss,
        folder,
        rounds=settings.refine.rounds,
        iterations=settings.refine.iterations,
        lr=settings.refine.lr,
        dtype=settings.dtype,
        device=torch.device(settings.device),
        mixture_sharpness=settings.model.mixture_sharpness,
        design=None if cohort is None else cohort.design(),
        window=settings.loss.window,
    )


def network_fine_tuning(
    refinement: CohortRefinement, path: str | Path, settings: LearnedAtlasConfig
) -> NetworkFineTuning:
    """The fine-tuning that the settings ask for.

    Args:
        refinement: of the run.
        path: of its checkpoint.
        settings: of the run.
    """
    optimizer = settings.optimizer
    return NetworkFineTuning(
        refinement,
        EpochBatches(
            len(refinement.dataset), optimizer.batch_size, optimizer.seed, rank(), world_size()
        ),
        path,
        epochs=settings.refine.network_epochs,
        lr=settings.refine.network_lr,
        gradient_clip=optimizer.gradient_clip,
        passes=settings.model.passes,
    )


def cohort_publisher(
    network: AtlasNetwork,
    cohort: Cohort,
    settings: LearnedAtlasConfig,
    velocities: Any,
    output_dir: str | Path,
    model_file: str | Path | None = None,
    history: Any = None,
    state: Any = None,
    at: str | Mapping[str, Any] | None = None,
) -> AtlasPublisher:
    """Publishes the cohort's atlas from LINEAR densities, read again one subject at a time.

    ``at`` asks for a conditional template at chosen covariates, see `parse_values`; it goes to a
    folder of its own.

    Raises:
        ConfigurationError: ``at`` can't be understood.
    """
    coding = published_coding(network)
    values = parse_values(at, coding)
    for sentence in coding.beyond(values) if coding is not None and values is not None else ():
        logger.warning("%s", sentence)
    dataset: Any = density_dataset(
        cohort.datalist(), cohort_transforms(cohort, settings, log=False), cache="none"
    )
    return AtlasPublisher(
        network,
        dataset,
        cohort,
        settings,
        velocities,
        output_dir,
        model_file,
        history=history,
        state=state,
        device=torch.device(settings.device),
        bar=progress_bar,
        coding=coding,
        at=values or None,
        loss=velocities.loss,
    )


# ---------------------------------------------------------------------------------------------
# With a published model
# ---------------------------------------------------------------------------------------------


def opened(
    load: Callable[[str | Path], Network],
    path: str | Path,
    device: str,
    written: Sequence[str | Path] = (),
) -> Network:
    """A published network, after what can be known beforehand of the run's end.

    Args:
        load: reads it.
        path: its file.
        device: of the job.
        written: folders that the run will write to; they are locked while the result is in use.

    Raises:
        ConfigurationError: if the machine lacks the device.
        StorageError: if something that is no writable folder stands in the way of ``written``,
            or another run is at work there.
    """
    open_device(device)
    with reserved(written) as users:
        network = load(path)
        users.append(network)
    return network


def open_network(
    path: str | Path, settings: LearnedAtlasConfig, written: Sequence[str | Path] = ()
) -> AtlasNetwork:
    """The network of a published model, ``<ckpt_dir>/model.pt``; see `opened`.

    All passes share the weights, so that a job may ask for others than the network learned.

    Args:
        path: of the model.
        settings: the job's own, as asked for; the model brings the others.
        written: folders that the run will write to.

    Raises:
        CheckpointError: see `published_network`.
    """
    network = opened(published_network, path, settings.device, written)
    if "model.passes" in settings.by_path(given_only=True):
        network.passes = tuple(settings.model.passes)
    return network


def open_published_cohort(
    dataset_dir: str | Path,
    network: AtlasNetwork,
    settings: LearnedAtlasConfig,
    written: str | Path | None = None,
) -> Cohort:
    """A cohort to emit a published model's atlas from, in the model's box.

    Args:
        dataset_dir: the dataset folder.
        network: as published.
        settings: of the model and the job.
        written: output_dir, where there has to be room.

    Raises:
        CohortError: see `read_cohort`; or the cohort isn't on the model's grid.
        StorageError: if there isn't room for what the run writes.
    """
    cohort = read_cohort(dataset_dir, settings, coding=published_coding(network))
    grid, crop = published_geometry(network)
    difference = cohort.grid.same_as(grid)
    if difference is not None:
        raise CohortError(
            f"the cohort in dataset folder {dataset_dir} is not on the grid of the model: "
            f"{difference}; nothing is resampled silently"
        )
    if cohort.identity() != network.description["cohort"]:
        logger.warning(
            "the model was trained on another cohort than the one in %s: the atlas gets its "
            "template, and statistics and fields of this cohort",
            dataset_dir,
        )
    cohort = in_box(cohort, crop, dataset_dir)
    if written is not None:
        check_space({Path(written): output_bytes(cohort, settings)})
    return cohort


def published_velocities(
    network: AtlasNetwork,
    dataset: Sequence[dict[str, Any]],
    loss: AtlasLoss,
    state: RunState,
    settings: LearnedAtlasConfig,
    cohort: Cohort | None = None,
) -> CohortRefinement | NetworkVelocities:
    """The training's own velocities where they still lie, else what the network finds now."""
    if state.belongs_to(weights_identity(network)):
        stored = cohort_refinement(network, dataset, loss, state.refinement, settings, cohort)
        stored.run()  # all its rounds are done: it only reads them
        return stored
    logger.warning(
        "%s holds no velocities of this model and cohort: fields are estimated by the network%s",
        state.folder,
        f" and refined in {settings.refine.new_subject_iterations} iterations"
        if settings.refine.new_subject_iterations
        else "; see learned_atlas#refine#new_subject_iterations",
    )
    return NetworkVelocities(
        network,
        dataset,
        loss,
        iterations=settings.refine.new_subject_iterations,
        lr=settings.refine.lr,
        dtype=settings.dtype,
        device=torch.device(settings.device),
        mixture_sharpness=settings.model.mixture_sharpness,
        design=None if cohort is None else cohort.design(),
    )


def published_history(network: AtlasNetwork, state: RunState) -> LossHistory | None:
    """The losses of the training that made a model, if they still lie there."""
    if not state.belongs_to(weights_identity(network)):
        return None
    history = LossHistory()
    history.epochs = [dict(epoch) for epoch in load_checkpoint(state.training)["history"]]
    return history


def open_new_subjects(
    network: AtlasNetwork,
    settings: LearnedAtlasConfig,
    dataset_dir: str | Path,
    maps: str | Path | Sequence[str | Path] | None = None,
    written: Sequence[str | Path] = (),
    at: str | Mapping[str, Any] | None = None,
) -> NewSubjects:
    """Subjects to register, checked against the atlas's grid.

    Args:
        network: as published.
        settings: of the model and the job.
        dataset_dir: a folder in a cohort's layout.
        maps: a map, or a list of them, in place of the folder.
        written: folders that the run will write to, the first one the results; they are locked
            while the result is in use.
        at: covariates of all of them, see `parse_values`; None: looked up in the table.

    Raises:
        StorageError: see `opened`.
        CohortError: see `read_new_subjects`.
        ConfigurationError: ``at`` can't be understood.
    """
    if maps is not None and not maps:
        raise CohortError("input names no map; give it a .nii.gz file or a list of them")
    grid, crop = published_geometry(network)
    coding = published_coding(network)
    values = parse_values(at, coding)
    source = dataset_dir if maps is None else maps
    with reserved(written) as users:
        found = read_new_subjects(source, settings, grid, crop, coding, values)
        if written:
            room = registration_bytes(len(found.subjects), crop, settings)
            check_space({Path(written[0]): room})
        users.append(found)
    return found


def subject_transforms(network: AtlasNetwork, settings: LearnedAtlasConfig) -> Compose:
    """From a new subject's files to its log density in the model's box, for `Invertd` to undo."""
    grid, crop = published_geometry(network)
    return density_transforms(
        settings.cohort.normalisation,
        settings.model.channels,
        settings.loss.log_offset,
        crop.start,
        crop.stop,
        track_meta=True,
        grid=grid,
        resample=settings.cohort.resample,
    )
