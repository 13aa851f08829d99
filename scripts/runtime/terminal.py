"""Output to a terminal or a pipe that may be closed before the run is over."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any, TextIO

from scripts.errors import shown

__all__ = ["LastingStream"]

_LAYOUT = "\n\r\t"
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class LastingStream:
    """A text stream that goes quiet, without an error, once its reader is gone.

    A lost progress bar must not end a long training. Any other error is raised. Characters that a
    terminal obeys are written as escapes, whatever wrote them: other libraries and tracebacks quote
    names from files as well.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless the reader is gone."""
        self._attempt(self._stream.write, shown(text, keep=_LAYOUT))
        return len(text)

    def flush(self) -> None:
        """Flush, unless the reader is gone."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # Send the rest of the buffer, and all later output, to nowhere.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
