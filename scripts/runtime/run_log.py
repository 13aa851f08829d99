"""Keeps the log of a run in a file, for users who closed the terminal."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

__all__ = ["LOG_FILE", "keep_log", "note"]

LOG_FILE = "run.log"
_BYTES, _EARLIER = 1_000_000, 3


class _RunLog(logging.handlers.RotatingFileHandler):
    """Rotates at 1 MB and keeps three earlier files; warns once if it can't write."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=_BYTES, backupCount=_EARLIER, delay=True, encoding="utf-8",
            errors="backslashreplace",
        )  # fmt: skip
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.setLevel(logging.INFO)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop logging to the file: a log isn't worth ending the run."""
        error = sys.exc_info()[1]
        logging.getLogger().removeHandler(self)
        if isinstance(error, OSError):
            logging.getLogger(__name__).warning(
                "no log is kept in %s: %s", self.baseFilename, error
            )
            return
        super().handleError(record)


_kept: _RunLog | None = None


def keep_log(folder: str | Path) -> None:
    """Also write all further log messages to ``<folder>/run.log``; one file per process.

    Args:
        folder: of the run; must exist.
    """
    global _kept
    root = logging.getLogger()
    if _kept is not None:
        root.removeHandler(_kept)
        _kept.close()
    _kept = _RunLog(Path(folder) / LOG_FILE)
    root.addHandler(_kept)


def note(text: str) -> None:
    """Write a line only to the log file, when the user already sees it another way."""
    if _kept is not None and _kept in logging.getLogger().handlers:
        _kept.handle(logging.LogRecord("run", logging.ERROR, __file__, 0, text, None, None))
