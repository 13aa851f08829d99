"""Remarks on subjects that can be used: one warning for all subjects that share a remark."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from scripts.errors import some_names

__all__ = ["MOST_NAMES", "Remarks", "log_reordering"]

logger = logging.getLogger(__name__)

MOST_NAMES = 20
"""Names that a message lists."""


class Remarks:
    """Collects remarks on subjects. Subjects with the same remark share one warning."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[str]] = {}

    def add(self, subject: str, remarks: Iterable[str]) -> None:
        """Note a subject's remarks."""
        for remark in dict.fromkeys(remarks):
            self._subjects.setdefault(remark, []).append(subject)

    def warn(self) -> None:
        """Log them."""
        for remark, names in self._subjects.items():
            several = "s" if len(names) > 1 else ""
            logger.warning("subject%s %s: %s", several, some_names(names, MOST_NAMES), remark)


def log_reordering(names: Sequence[str], whose: str) -> None:
    """Log that maps are stored in another order of axes.

    Args:
        names: of their subjects.
        whose: order they were changed to, as text.
    """
    logger.info(
        "stored in another axis order and reordered to %s, exactly: %s",
        whose,
        some_names(names, MOST_NAMES),
    )
