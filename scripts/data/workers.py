"""The number of worker processes that shared memory allows."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["workers_that_fit"]

logger = logging.getLogger(__name__)

_SHARED = Path("/dev/shm")
_AHEAD = 2  # batches that a worker reads ahead, as torch's loader does
_PAGE = 1 << 12


def workers_that_fit(
    settings: LearnedAtlasConfig, shape: Sequence[int], batch_size: int = 1
) -> int:
    """The worker processes that are asked for, or none if shared memory is too small for them.

    Workers hand over what they read in shared memory, of which containers often have little. A
    batch that doesn't fit there ends the worker; the training process itself needs none.

    Args:
        settings: cohort.num_workers and model.channels are read.
        shape: voxels of a subject along each axis.
        batch_size: subjects that are handed over at once.
    """
    requested = settings.cohort.num_workers
    if requested == 0 or not _SHARED.is_dir():
        return requested
    subject = 4 * settings.model.channels * math.prod(shape) + _PAGE
    needed, free = requested * _AHEAD * batch_size * subject, shutil.disk_usage(_SHARED).free
    if needed <= free:
        return requested
    logger.warning(
        "%s = %d: the workers need %.1f MB of shared memory, %s has %.1f MB free: subjects are "
        "read without workers; give the container more (docker run --shm-size)",
        settings.cohort.key("num_workers"), requested, needed / 1e6, _SHARED, free / 1e6,
    )  # fmt: skip
    return 0
