"""Keeps the log of a run in a file, for users who closed the terminal."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import stat
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from scripts.errors import shown

__all__ = ["LOG_FILE", "escape_records", "keep_log", "note"]

LOG_FILE = "run.log"
_BYTES, _EARLIER = 1_000_000, 3


def escape_records() -> None:
    """Log names and values from outside by `shown`, whichever handler writes them.

    Records of this library alone; once, however often it is called.
    """
    previous = logging.getLogRecordFactory()
    if getattr(previous, "escapes", False):
        return

    def factory(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = previous(*arguments, **more)
        if record.name.partition(".")[0] in ("scripts", "bundle"):
            record.msg, record.args = shown(record.getMessage()), None
        return record

    factory.escapes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


class _RunLog(logging.handlers.RotatingFileHandler):
    """Rotates at 1 MB and keeps three earlier files; warns once if it can't write."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=_BYTES, backupCount=_EARLIER, delay=True, encoding="utf-8",
            errors="backslashreplace",
        )  # fmt: skip
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.setLevel(logging.INFO)

    def _open(self) -> TextIOWrapper:
        """The file itself: a link, a pipe or a device in its place is refused."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(self.baseFilename, flags, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "is not a file")
        return os.fdopen(handle, "a", encoding=self.encoding, errors=self.errors)

    def format(self, record: logging.LogRecord) -> str:
        """A line as `shown`, whichever library wrote it: logs are read on terminals."""
        return shown(super().format(record), keep="\n\t")

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop logging to the file: a log isn't worth ending the run."""
        error, root = sys.exc_info()[1], logging.getLogger()
        # A new list: the handlers of the one that is being gone through still get this record.
        root.handlers = [other for other in root.handlers if other is not self]
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
