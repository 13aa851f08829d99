"""Components for jobs with a published model: its network, cohort, velocities, new subjects."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.atlas.components import cohort_refinement, refuse_masks
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.network_velocities import NetworkVelocities
from scripts.atlas.published_model import (
    published_coding,
    published_geometry,
    published_network,
    published_transforms,
)
from scripts.atlas.resources import output_bytes, registration_bytes
from scripts.atlas.template_network import DEMO_TEMPLATE, template_network
from scripts.cohort import (
    Cohort,
    NewSubjects,
    parse_values,
    read_cohort,
    read_new_subjects,
)
from scripts.cohort.label_names import read_label_names
from scripts.data import density_transforms
from scripts.data.density_loading import changed_transform
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.opening import opened, reserved
from scripts.engines.run_state import RunState
from scripts.errors import CohortError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.checkpoint import load_checkpoint
from scripts.networks.described import weights_identity
from scripts.runtime.lock import SharedLock
from scripts.runtime.processes import is_first
from scripts.runtime.storage import check_replaceable, check_space
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox

__all__ = [
    "as_trained",
    "in_box",
    "open_network",
    "open_new_subjects",
    "open_published_cohort",
    "published_history",
    "published_velocities",
    "subject_transforms",
]

logger = logging.getLogger(__name__)


def open_network(
    path: str | Path,
    settings: LearnedAtlasConfig,
    written: Sequence[str | Path] = (),
    template: str | Path | None = None,
    untrained: str | Path | None = None,
) -> AtlasNetwork:
    """Load the network of a published model, ``<ckpt_dir>/model.pt``; see `opened`.

    All passes share the weights, so a job may use other passes than the training.

    Args:
        path: of the model.
        settings: of the job; the others come from the model.
        written: folders that the run will write to.
        template: a map in place of a model; see `template_network`.
        untrained: path of the model; if nothing was trained yet, the demo cohort's template
            replaces it. None: a missing model is an error.

    Raises:
        CheckpointError: see `published_network`.
    """
    load: Callable[[str | Path], AtlasNetwork] = published_network
    stands_in = False
    if template is None and untrained is not None:
        same = Path(path).absolute() == Path(untrained).absolute()
        if same and not os.path.lexists(path):
            template, stands_in = DEMO_TEMPLATE, True
            logger.warning(
                "nothing was trained yet (no %s): subjects are registered to the template of the "
                "demo cohort; train a model, or give a map with --template",
                path,
            )
    if template is not None:
        load = partial(template_network, asked=settings, whole_grid=stands_in)
        path = template
    network = opened(load, path, settings.device, settings.key("device"), written)
    if settings.model.passes and "model.passes" in settings.by_path(given_only=True):
        network.passes = tuple(settings.model.passes)
    return network


def open_published_cohort(
    dataset_dir: str | Path,
    network: AtlasNetwork,
    settings: LearnedAtlasConfig,
    written: str | Path | None = None,
) -> Cohort:
    """A cohort for emitting a published model's atlas, in the model's box.

    Args:
        dataset_dir: the dataset folder.
        network: as published.
        settings: of the model and the job.
        written: output_dir, whose disk space is checked.

    Raises:
        CohortError: see `read_cohort`; or the cohort isn't on the model's grid.
        StorageError: if there isn't room for what the run writes, or the atlas's folder can't be
            replaced.
    """
    refuse_masks(settings)
    coding = published_coding(network)
    replaced = None if written is None else Path(written) / settings.output_subdir
    if replaced is not None:
        check_replaceable(replaced, inputs=[dataset_dir])
    cohort = read_cohort(dataset_dir, settings.cohort_request(), coding=coding)
    grid, crop = published_geometry(network)
    difference = cohort.grid.same_as(grid, settings.cohort.grid_tolerance)
    if difference is not None:
        raise CohortError(
            f"the cohort in dataset folder {dataset_dir} is not on the grid of the model: "
            f"{difference}; nothing is resampled silently"
        )
    if cohort.identity() != network.description["cohort"]:
        logger.warning(
            "the model was trained on another cohort than the one in %s: the atlas gets the "
            "model's template, and the statistics and fields of this cohort",
            dataset_dir,
        )
    cohort = in_box(cohort, crop, dataset_dir)
    if written is not None and replaced is not None:
        check_replaceable(replaced, inputs=cohort.files())
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
    """The velocities of the training if their files still exist, else the network's estimates.

    While these files are in use, no run can start in their folder.

    Raises:
        StorageError: a run is at work there.
        CheckpointError: they are damaged, or not all there.
    """
    lock = SharedLock(state.folder.parent) if state.folder.exists() and is_first() else None
    if state.belongs_to(weights_identity(network)):
        stored = cohort_refinement(network, dataset, loss, state.refinement, settings, cohort)
        stored.restore()
        if lock is not None:
            weakref.finalize(stored, lock.release)
        return stored
    if lock is not None:
        lock.release()
    logger.warning(
        "%s contains no velocities of this model and cohort: fields are estimated by the network%s",
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
    """The losses of the training that made a model, if they still exist."""
    if not state.belongs_to(weights_identity(network)):
        return None
    history = LossHistory()
    if not state.training.exists():  # there was no epoch
        return history
    history.epochs = [dict(epoch) for epoch in load_checkpoint(state.training)["history"]]
    return history


def open_new_subjects(
    network: AtlasNetwork,
    settings: LearnedAtlasConfig,
    dataset_dir: str | Path,
    maps: str | Path | Sequence[str | Path] | None = None,
    written: Sequence[str | Path] = (),
    at: str | Mapping[str, Any] | None = None,
    labels: bool = False,
    asked: LearnedAtlasConfig | None = None,
) -> NewSubjects:
    """Subjects to register, checked against the atlas's grid.

    Args:
        network: as published.
        settings: of the model and the job.
        dataset_dir: a folder in a cohort's layout.
        maps: a map, or a list of them, instead of the folder.
        written: folders that the run will write to, the first one for the results; locked while the
            result is in use.
        at: covariates of all subjects, see `parse_values`; None: from the table.
        labels: also look for label maps, as with save_warped.
        asked: settings of the job alone. Label maps and names that they give are used. Those of the
            model's cohort need not exist beside new subjects.

    Raises:
        StorageError: see `opened`.
        CohortError: see `read_new_subjects`.
        ConfigurationError: ``at`` can't be parsed.
    """
    if maps is not None and not maps:
        raise CohortError("input names no map; must be a .nii.gz file or a list of them")
    grid, crop = published_geometry(network)
    coding = published_coding(network)
    values = parse_values(at, coding)
    source = dataset_dir if maps is None else maps
    request = settings.cohort_request()
    # The pattern of the model's cohort may match no new subject; the job's must match.
    given = asked is not None and asked.cohort.labels is not None
    if not (labels or settings.save_warped or given):
        request = request.without_labels()
    with reserved(written) as users:
        result = read_new_subjects(source, request, grid, crop, coding, values, labelled=given)
        if asked is not None and asked.cohort.label_names is not None:
            table = Path(dataset_dir if maps is None else "") / asked.cohort.label_names
            names = read_label_names(table, settings.cohort_request().key("label_names"))
            result = replace(result, label_names=names)
        if written:
            room = registration_bytes(len(result.subjects), crop, settings)
            check_space({Path(written[0]): room})
        users.append(result)
    return result


def subject_transforms(network: AtlasNetwork, settings: LearnedAtlasConfig) -> Compose:
    """From a new subject's files to its log density in the model's box; `Invertd` can undo it."""
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
        tolerance=settings.cohort.grid_tolerance,
        changes=published_transforms(network),
    )


def as_trained(network: AtlasNetwork, transforms: Sequence[Callable[..., Any]]) -> Compose:
    """Transforms with the arguments of the model's training instead of those of the settings.

    Args:
        network: as published.
        transforms: classes with their current arguments (`functools.partial`), which MONAI makes
            from a component with ``_mode_: callable``.
    """
    changes = published_transforms(network)
    made = []
    for one in transforms:
        kind = one.func if isinstance(one, partial) else one
        changed = changes.get(getattr(kind, "__name__", ""), {})
        for key, value in changed.items():
            logger.info("%s: %s = %r, as in the model's training", kind.__name__, key, value)
        made.append(changed_transform(one, changed))
    return Compose(made)


def in_box(cohort: Cohort, crop: CropBox, dataset_dir: str | Path) -> Cohort:
    """A cohort in the box of another cohort's model; warns about density outside it."""
    if cohort.crop == crop:
        return cohort
    whole = cohort.crop.paste(cohort.mean_density, cohort.grid.shape)
    inside = crop.crop(whole)
    lost = 1 - float(inside.sum(dtype="float64")) / float(whole.sum(dtype="float64"))
    if lost > 0:
        logger.warning(
            "%.2g %% of the density of the cohort in %s is outside the model's box and cut off",
            100 * lost,
            dataset_dir,
        )
    return replace(cohort, crop=crop, mean_density=inside.copy())
