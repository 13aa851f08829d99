"""Runs a job in a forked process, which may be killed at a chosen moment.

Processes are forked from one that has loaded torch and MONAI, so that the moments are in the job
and not in imports.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bundle import cli

__all__ = ["Ended", "Moment", "in_process"]

_FILE_EVENTS = frozenset(
    ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
)


@dataclass(frozen=True)
class Moment:
    """When a process gets its signal: after some seconds, or before its n-th file operation."""

    signum: signal.Signals
    seconds: float | None = None
    operation: int | None = None

    def __str__(self) -> str:
        when = f"{self.seconds:.3f} s" if self.seconds is not None else f"file {self.operation}"
        return f"{self.signum.name} at {when}"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: exit status, negative for a signal.
        seconds: duration.
        operations: number of file operations; None if they weren't counted to the end.
        output: what it printed.
        peak_mb: peak memory (including what it shares with its parent).
    """

    status: int
    seconds: float
    operations: int | None
    output: str
    peak_mb: float


def in_process(
    words: Sequence[str],
    folder: Path,
    moment: Moment | None = None,
    unchecked: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Ended:
    """Run ``python -m bundle <words>`` in a forked process, and kill it if a moment is given.

    Args:
        words: of the command line.
        folder: file operations below it are counted; its log goes beside it.
        moment: of the signal.
        unchecked: pretend that every disk has room.
        watch: called in a thread with the process's number, once it runs.
    """
    log, count = folder.with_suffix(".log"), folder.with_suffix(".count")
    count.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        if unchecked:
            shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 60, 0, 1 << 60)
        _as_child(words, folder, moment, log, count)
    started = time.monotonic()
    timer = None
    if moment is not None and moment.seconds is not None:
        timer = threading.Timer(moment.seconds, _signal, (child, moment.signum))
        timer.start()
    if watch is not None:
        threading.Thread(target=watch, args=(child,)).start()
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    if timer is not None:
        timer.cancel()
        timer.join()
    operations = int(count.read_text()) if count.exists() else None
    described = log.read_text(errors="replace")
    return Ended(
        os.waitstatus_to_exitcode(status), seconds, operations, described, usage.ru_maxrss / 1024
    )


def _signal(process: int, signum: int) -> None:
    with suppress(ProcessLookupError):  # it has already ended
        os.kill(process, signum)


def _as_child(
    words: Sequence[str], folder: Path, moment: Moment | None, log: Path, count: Path
) -> None:
    """Run the command and never return."""
    status = 1
    try:
        # PyTorch makes its pool of threads anew after a fork, when a thread first computes. Two
        # threads that do so at once meet no pool ("Invalid thread pool!"), so it is made here.
        torch.set_num_threads(torch.get_num_threads())
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        counter = _Operations(str(folder), moment)
        sys.addaudithook(counter)
        status = cli.run(list(words))
        counter.moment = None
        count.write_text(str(counter.counted))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # What an interpreter does at its end, without returning to the parent's frames.
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


class _Operations:
    """Counts a process's file operations below a folder, and sends it the signal."""

    def __init__(self, below: str, moment: Moment | None) -> None:
        self.below = below
        self.moment = moment
        self.counted = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _FILE_EVENTS or not str(arguments[0]).startswith(self.below):
            return
        self.counted += 1
        if self.moment is not None and self.counted == self.moment.operation:
            os.kill(os.getpid(), self.moment.signum)
