"""Rules for masks, whichever job reads them: whole numbers, and seldom most of an image."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from scripts.errors import CohortError

__all__ = ["require_whole_numbers", "warn_if_mostly_covered"]

logger = logging.getLogger(__name__)

_MOST_COVERED = 0.5  # of the voxels that aren't 0: a mask of more is probably inverted


def require_whole_numbers(path: str | Path, values: np.ndarray, rule: str) -> None:
    """Make sure that a mask contains no fractions, such as those of an interpolated one.

    Args:
        path: of the mask, for the message.
        values: of the mask, of any shape.
        rule: of the message, such as "a mask must be whole numbers".

    Raises:
        CohortError: a value is a fraction.
    """
    fractions = values[values != np.rint(values)]
    if fractions.size:
        raise CohortError(
            f"{path}: contains the value {fractions[0]:g}; {rule}; cut it first, as fslmaths "
            "-thr 0.5 -bin does"
        )


def warn_if_mostly_covered(mask: str, before: int, after: int, what: str) -> None:
    """Warn of a mask that covers most of an image, because it may be inverted.

    Args:
        mask: how the message names it.
        before: number of voxels that aren't 0.
        after: number of those that the mask doesn't cover.
        what: these voxels in the message, with the consequence.
    """
    share = 1 - after / max(before, 1)
    if share > _MOST_COVERED:
        logger.warning(
            "%s: covers %.0f %% of %s; is the mask inverted? It must be 0 where voxels count",
            mask, 100 * share, what,
        )  # fmt: skip
