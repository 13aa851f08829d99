"""Estimates the disk space and memory of a run before it starts."""

from __future__ import annotations

import math

import torch

from scripts.cohort import Cohort
from scripts.errors import ConfigurationError
from scripts.runtime.memory import available_memory
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox

__all__ = ["cache_bytes", "check_cache", "checkpoint_bytes", "output_bytes", "registration_bytes"]

_FLOAT = 4
_PAGES = 4_000_000  # reports, pictures, logs: nearly constant


def output_bytes(cohort: Cohort, settings: LearnedAtlasConfig) -> dict[str, int]:
    """Largest size of what a run writes to ``output_dir``, by purpose.

    Counts floats without any compression, over the cohort's box: outside it fields are constant and
    maps are 0, which compresses to almost nothing. An earlier atlas stays until the new one is
    complete, so its space doesn't count as free.

    Returns:
        ``fields`` = 2 N 3 B floats (three components in planes as well), ``maps`` = K M C B and,
        with save_warped or save_jacobians, ``warped``, see `warped_bytes`, for N subjects, K
        templates, M maps, C channels and B voxels in the box; ``reports``.
    """
    box = math.prod(cohort.crop.shape)
    maps = settings.model.n_templates * len(settings.emit_baseline_maps) * settings.model.channels
    fields = 2 * len(cohort.subjects) * 3 if settings.save_fields else 0
    return {
        "fields": fields * box * _FLOAT,
        "maps": maps * box * _FLOAT,
        **warped_bytes(len(cohort.subjects), box, settings),
        "reports": _PAGES,
    }


def warped_bytes(subjects: int, box: int, settings: LearnedAtlasConfig) -> dict[str, int]:
    """Largest size of the subjects' maps in template space: each one alone and in a 4-D file.

    Returns:
        ``warped`` = 2 N B floats for each channel's density, for labels and for the log-Jacobian;
        empty if none is asked for.
    """
    volumes = settings.model.channels + (settings.cohort.labels is not None)
    each = settings.save_warped * volumes + settings.save_jacobians
    return {"warped": 2 * subjects * each * box * _FLOAT} if each else {}


def checkpoint_bytes(cohort: Cohort, settings: LearnedAtlasConfig) -> dict[str, int]:
    """Largest size of what a run writes to ``ckpt_dir``, by purpose.

    Returns:
        ``velocities`` of two rounds of refinement, 2 N d R floats with R = B / r^d voxels of the
        reduced box; ``checkpoints``: the weights W once in model.pt and in refinement/state.pt,
        three times in training.pt and in fine_tuning.pt (with Adam's two moments), all but the
        first twice, as the checkpoint before the last one is kept, and the largest of them once
        more while it is written; ``cache`` = N C B with ``cache: disk``. W = K C B
        template + C B support + K d R mean velocity + p (C B + d R) slopes on p columns of
        covariates + the convolutions.
    """
    model, n, d = settings.model, len(cohort.subjects), len(cohort.crop.shape)
    box = math.prod(cohort.crop.shape)
    reduced = math.prod(math.ceil(size / model.field_resolution) for size in cohort.crop.shape)
    weights = (model.n_templates + 1) * model.channels * box + model.n_templates * d * reduced
    columns = 0 if cohort.coding is None else len(cohort.coding.columns)
    weights += columns * (model.channels * box + d * reduced)
    # A convolution gets at most the features below it and those of the skip connection.
    below, widest = 2 * model.channels, max((*model.enc_features, 2 * model.channels))
    for features in (*model.enc_features, *model.dec_features, d):
        weights += (3**d * (below + widest) + 1) * features
        below = features
    rounds = min(2, settings.refine.network_rounds + settings.refine.rounds)
    trained = 2 if settings.refine.network_epochs else 1
    cached = n * model.channels * box if settings.cohort.cache == "disk" else 0
    return {
        "velocities": rounds * n * d * reduced * _FLOAT,
        "checkpoints": (1 + 2 * (1 + 3 * trained) + 3) * weights * _FLOAT,
        "cache": cached * _FLOAT,
    }


def registration_bytes(
    subjects: int, crop: CropBox, settings: LearnedAtlasConfig
) -> dict[str, int]:
    """Largest size of what a registration writes to ``output_dir``.

    Returns:
        ``fields`` = 2 N 3 B floats and ``maps`` = 2 N C B (the atlas in the subject's space, the
        subject in template space), for N subjects, C channels and B voxels in the box.
    """
    floats = subjects * math.prod(crop.shape) * _FLOAT
    return {
        "fields": 6 * floats if settings.save_fields else 0,
        "maps": 2 * settings.model.channels * floats,
        **warped_bytes(subjects, math.prod(crop.shape), settings),
    }


def cache_bytes(cohort: Cohort, settings: LearnedAtlasConfig) -> int:
    """Memory of ``cache: ram`` or ``device``: N C B floats, in each process."""
    box = math.prod(cohort.crop.shape)
    return len(cohort.subjects) * settings.model.channels * box * _FLOAT


def check_cache(cohort: Cohort, settings: LearnedAtlasConfig, processes: int = 1) -> None:
    """Refuse a cache that doesn't fit into memory.

    Args:
        cohort: subjects and box.
        settings: gives cache and device.
        processes: number of processes; with ``ram`` each holds the whole cohort.

    Raises:
        ConfigurationError: with the sizes.
    """
    cache, device = settings.cohort.cache, torch.device(settings.device)
    if cache not in ("ram", "device"):
        return
    if cache == "device" and device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
        copies, what = 1, f"device {settings.device}"
    else:
        free, copies, what = available_memory(), processes, "memory"
    needed = copies * cache_bytes(cohort, settings)
    if free is None or needed <= free:
        return
    shared = f" x {copies} processes" if copies > 1 else ""
    raise ConfigurationError(
        f"learned_atlas.cohort.cache = {cache!r}: {len(cohort.subjects)} subjects x "
        f"{settings.model.channels} channels x {math.prod(cohort.crop.shape)} voxels x {_FLOAT} "
        f"bytes{shared} = {needed / 1e9:.2f} GB, but {what} has only {free / 1e9:.2f} GB free; "
        "use disk or none"
    )
