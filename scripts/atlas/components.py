"""Components that the configs name for a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.atlas.fine_tuning import NetworkFineTuning
from scripts.atlas.initial import require_volumes
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_transforms
from scripts.atlas.resources import check_cache, checkpoint_bytes, output_bytes
from scripts.cohort import (
    Cohort,
    read_cohort,
)
from scripts.data import EpochBatches, density_dataset, density_transforms
from scripts.engines.opening import check_earlier_files, reserved
from scripts.errors import CohortError, ConfigurationError
from scripts.losses import (
    AtlasLoss,
    CentralityLoss,
    LocalCorrelationLoss,
    PresenceLoss,
    SmoothnessLoss,
)
from scripts.networks.precision import open_device
from scripts.runtime.processes import (
    barrier,
    end_with_parent,
    from_first,
    rank,
    share,
    stop_together,
    world_size,
)
from scripts.runtime.run_log import keep_log
from scripts.runtime.storage import check_replaceable, check_space
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = [
    "atlas_loss",
    "cohort_refinement",
    "cohort_transforms",
    "network_fine_tuning",
    "open_cohort",
    "refuse_masks",
    "train_dataset",
]

logger = logging.getLogger(__name__)


def open_cohort(
    dataset_dir: str | Path,
    settings: LearnedAtlasConfig,
    written: Sequence[str | Path] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> Cohort:
    """Read and check the cohort, after early checks of the device, disk and memory.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: output_dir and ckpt_dir; locked while the result is in use. The run's log is kept
            in the last one.
        data: a data list as in MONAI's tools, one mapping per map with its path as ``image``,
            instead of the folder; other entries (a ``label``) are ignored.

    Raises:
        ConfigurationError: the machine doesn't have the device, a batch has fewer subjects than
            there are processes, the requested cache doesn't fit into memory, or the maps are planes
            and the network that ships is asked for.
        StorageError: a folder in ``written`` can't be written, another run is using it, or the disk
            has too little room.
        CohortError: see `read_cohort`.
    """
    _check_processes(settings)
    refuse_masks(settings)

    def read() -> Cohort:
        with reserved(written) as users:
            files = None if data is None else _listed_maps(data)
            if len(written) == 2:
                _check_places(settings, written, [dataset_dir, *(files or ())])
            cohort = read_cohort(dataset_dir, settings.cohort_request(), files=files)
            _check_box(cohort)
            if settings.model.initial == "shipped":  # before the run notes that it has begun
                require_volumes("shipped", len(cohort.crop.shape))
            _warn_of_scale(cohort, settings)
            check_cache(cohort, settings, world_size())
            if len(written) == 2:
                _check_places(settings, written, cohort.files())
                _check_space(cohort, settings, *map(Path, written))
            users.append(cohort)
            if written:
                keep_log(written[-1])
        return cohort

    return from_first(read)


def refuse_masks(settings: LearnedAtlasConfig) -> None:
    """Refuse masks in a job that publishes the atlas of a cohort, where they have no effect.

    Raises:
        ConfigurationError: there are some.
    """
    if settings.cohort.mask is not None:
        raise ConfigurationError(
            f"{settings.cohort.key('mask')} = {settings.cohort.mask!r}: must be null in a job that "
            "makes an atlas; masks are for register and evaluate"
        )


def _check_processes(settings: LearnedAtlasConfig) -> None:
    """Check that each process has its device, and at least one subject per batch.

    Raises:
        ConfigurationError: a process doesn't.
    """
    end_with_parent()
    error = None
    try:
        open_device(settings.device, settings.key("device"))
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
        "more, and give planes as (X, Y) or (X, Y, 1)"
    )


def _listed_maps(data: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Paths of the images of a data list."""
    images = [item.get("image") for item in data]
    wrong = [image for image in images if not isinstance(image, str | Path)]
    if wrong:
        raise CohortError(
            f"train#dataset#data names {wrong[0]!r} as an image; each entry must have the path of "
            "one density map as 'image'"
        )
    return [Path(str(image)) for image in images]


def _check_places(
    settings: LearnedAtlasConfig, written: Sequence[str | Path], inputs: Sequence[str | Path]
) -> None:
    """Refuse a run that couldn't publish, or whose results would take the place of other files."""
    output_dir, ckpt_dir = map(Path, written)
    state, model = ckpt_dir / "run_state", ckpt_dir / "model.pt"
    needed = (ckpt_dir, state, output_dir / "tensorboard", output_dir / "snapshots")
    check_replaceable(output_dir / settings.output_subdir, inputs=[*inputs, *needed])
    check_earlier_files([state, model], inputs)


def _check_space(
    cohort: Cohort, settings: LearnedAtlasConfig, output_dir: Path, ckpt_dir: Path
) -> None:
    """Refuse a run whose results wouldn't fit on the disk."""
    output, kept = output_bytes(cohort, settings), checkpoint_bytes(cohort, settings)
    # Files of an earlier run are reused or deleted: their space is available to this run.
    earlier = [path for path in (ckpt_dir / "run_state").rglob("*") if path.is_file()]
    for path in earlier:
        largest = max(kept, key=kept.__getitem__)
        kept[largest] = max(0, kept[largest] - path.stat().st_size)
    both = {**output, **kept}
    same = output_dir.absolute() == ckpt_dir.absolute()
    check_space({output_dir: both} if same else {output_dir: output, ckpt_dir: kept})


def _warn_of_scale(cohort: Cohort, settings: LearnedAtlasConfig) -> None:
    """Warn about thresholds that are far from the cohort's densities."""
    positive = cohort.mean_density[cohort.mean_density > 0]
    typical, largest = float(np.median(positive)), float(positive.max())
    ratio = typical / settings.loss.log_offset
    if not 0.003 < ratio < 300:
        logger.warning(
            "learned_atlas.loss.log_offset = %g is far from this cohort's densities (median of "
            "the mean map %.2g, maximum %.2g): their logarithms are nearly %s; a good choice is a "
            "density that just counts as present",
            settings.loss.log_offset,
            typical,
            largest,
            "alike" if ratio >= 300 else "linear",
        )
    if settings.presence_value >= largest:
        logger.warning(
            "learned_atlas.presence_value = %g is above every mean density (maximum %.2g): "
            "prob_threshold will be almost or entirely 0",
            settings.presence_value,
            largest,
        )


def cohort_transforms(
    cohort: Cohort,
    settings: LearnedAtlasConfig,
    log: bool = True,
    network: AtlasNetwork | None = None,
) -> Compose:
    """Transforms from a cohort's files to its (log) densities in its box.

    Args:
        cohort: normalisation and box.
        settings: channels and offset.
        log: False gives linear densities.
        network: a published one, whose training may have used other transforms.
    """
    return density_transforms(
        cohort.normalisation,
        settings.model.channels,
        settings.loss.log_offset if log else None,
        cohort.crop.start,
        cohort.crop.stop,
        changes=None if network is None else published_transforms(network),
    )


def train_dataset(
    data: Sequence[Mapping[str, Any]] | None,
    transform: Compose,
    settings: LearnedAtlasConfig,
    cache_dir: str | Path,
    cohort: Cohort | None = None,
) -> Any:
    """The training dataset, cached according to the settings.

    In memory each process keeps the whole cohort, because a batch may contain any subject. On disk
    the processes share one cache, which they fill together before any of them reads from it.

    Args:
        data: one mapping per subject.
        transform: see `cohort_transforms`.
        settings: of the run.
        cache_dir: for a cache on disk.
        cohort: result of `open_cohort` for ``data``; its list replaces ``data``, because it also
            has each map's divisor and channel.
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


def atlas_loss(
    spacing: Sequence[float], settings: LearnedAtlasConfig, network: AtlasNetwork | None = None
) -> AtlasLoss:
    """The weighted loss of the settings.

    Args:
        spacing: voxel sizes in mm.
        settings: weights, window, scales.
        network: a published one, whose training may have used another loss.
    """
    loss = settings.loss
    arguments: dict[str, Any] = {
        "similarity_weight": loss.similarity_weight,
        "presence_weight": loss.presence_weight,
        "smoothness_weight": loss.smoothness_weight,
        "centrality_weight": loss.centrality_weight,
        "scales": loss.scales,
    }
    terms: dict[str, dict[str, Any]] = {
        "similarity": {"window": loss.window},
        "presence": {},
        "smoothness": {"spacing": spacing, "factor": settings.model.field_resolution},
        "centrality": {},
    }
    for name, value in ({} if network is None else network.description.get("loss", {})).items():
        if name not in terms:
            arguments[name] = value
        elif "_target_" in value:
            logger.warning(
                "the model was trained with another loss#%s (%s), which a model file doesn't "
                "contain: this job uses the term of the settings",
                name,
                value["_target_"],
            )
        else:
            terms[name] |= value
    return AtlasLoss(
        **arguments,
        similarity=LocalCorrelationLoss(**terms["similarity"]),
        presence=PresenceLoss(),
        smoothness=SmoothnessLoss(**terms["smoothness"]),
        centrality=CentralityLoss(),
    )


def cohort_refinement(
    network: AtlasNetwork,
    dataset: Sequence[dict[str, Any]],
    loss: AtlasLoss,
    folder: str | Path,
    settings: LearnedAtlasConfig,
    cohort: Cohort | None = None,
) -> CohortRefinement:
    """The refinement of the settings; covariates, if requested, come from ``cohort``."""
    return CohortRefinement(
        network,
        dataset,
        loss,
        folder,
        rounds=settings.refine.rounds,
        network_rounds=settings.refine.network_rounds,
        iterations=settings.refine.iterations,
        lr=settings.refine.lr,
        final_lr=settings.refine.final_lr,
        dtype=settings.dtype,
        device=torch.device(settings.device),
        mixture_sharpness=settings.model.mixture_sharpness,
        design=None if cohort is None else cohort.design(),
        window=settings.loss.window,
    )


def network_fine_tuning(
    refinement: CohortRefinement, path: str | Path, settings: LearnedAtlasConfig
) -> NetworkFineTuning:
    """The fine-tuning of the settings.

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
        passes=None if settings.model.initial else settings.model.passes_from_nothing,
    )


# ---------------------------------------------------------------------------------------------
# With a published model
# ---------------------------------------------------------------------------------------------
