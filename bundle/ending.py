"""How the process of a verb ends: interruptions, closed output, finalizers that fail."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO, cast

from scripts.errors import StorageError
from scripts.runtime.terminal import LastingStream

__all__ = [
    "EXIT_TERMINATED",
    "end_on_sigterm",
    "flushed",
    "ignore_interruptions",
    "interrupt_later",
    "lasting",
]

EXIT_TERMINATED = 143


def end_on_sigterm(signum: int, frame: object) -> None:
    """Unwind the stack, so that staging folders and the like are removed."""
    raise SystemExit(EXIT_TERMINATED)


def interrupt_later(unraisable: Any) -> None:
    """Interrupt the job again if Ctrl-C came in a callback of the interpreter, where it is lost.

    Args:
        unraisable: what `sys.unraisablehook` gets.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.05, _thread.interrupt_main)
    again.daemon = True
    again.start()


def ignore_interruptions(quietly: bool) -> None:
    """Ignore Ctrl-C from now on: the interpreter would print a traceback of it at its end.

    Args:
        quietly: also keep quiet about objects that can't be released as usual, because Ctrl-C left
            them half made or memory is lacking.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if quietly:
        sys.unraisablehook = lambda unraisable: None


def lasting(stream: TextIO | None) -> TextIO:
    """A standard stream that a closed terminal or pipe doesn't end."""
    if stream is None:  # closed before the start, as by `>&-`
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the end)
    return cast(TextIO, LastingStream(stream))


def flushed(code: int) -> int:
    """Flush standard output; otherwise the interpreter would end with another code."""
    stream = sys.stdout
    if stream is None:
        return code
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if code == 0 and not isinstance(error, BrokenPipeError):  # a closed reader isn't an error
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return StorageError.exit_code
    return code
