"""Progress of a long job."""

from __future__ import annotations

import sys

from tqdm import tqdm

from scripts.runtime.processes import is_first
from scripts.runtime.terminal import LastingStream

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, initial: int = 0) -> tqdm:
    """A progress bar with time left on stderr, or a line every 10 seconds if it isn't a terminal.

    Only the first of several processes shows it.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        file=LastingStream(sys.stderr),
        disable=not is_first(),
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )
