"""Several processes as one run: how they share work and data.

A thin layer over ``torch.distributed``: the starter of the run makes the process group (see
``configs/multi_gpu_train.yaml``). Without a group, everything here acts as a single process and
costs nothing. Functions that communicate must be called by all processes, in the same order.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from scripts.errors import TractAtlasError

__all__ = [
    "StoppedElsewhere",
    "add_up",
    "barrier",
    "collected_by_first",
    "end_with_parent",
    "everyones",
    "from_first",
    "is_first",
    "rank",
    "share",
    "stop_together",
    "world_size",
]

T = TypeVar("T")


_WATCH_S = 1.0
_GRACE_S = 10.0  # from the request to end to the end by force
_watching = threading.Event()


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, such as ``torchrun``.

    A launcher that is killed can't stop its processes: they would wait for each other, or go on,
    and keep the folders locked. Only of several processes; asked for again, it does nothing.
    """
    if world_size() > 1 and not _watching.is_set():
        _watching.set()
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)  # in a call that no signal interrupts
    os.kill(os.getpid(), signal.SIGKILL)


class StoppedElsewhere(SystemExit):
    """Another process of the run reports why it ends; this one exits quietly with its status."""


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the run."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes the shared files and talks to the user."""
    return rank() == 0


def share(count: int) -> range:
    """Indices of the subjects of this process: every n-th of ``count``, from its rank on."""
    return range(rank(), count, world_size())


def add_up(*tensors: torch.Tensor) -> None:
    """Replace each tensor, in place, by its sum over the processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        # Gathers plain objects, because a barrier of NCCL needs to know its device.
        everyones(None)


def everyones(value: T) -> list[T]:
    """The values of all processes, by rank; only for small values, since all of them get all."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def collected_by_first(value: T) -> Iterator[T]:
    """In the first process, the values of all processes, one at a time; in the others nothing.

    All processes must iterate to the end. However large the values, two are in memory at most.
    """
    if not is_first():
        dist.send_object_list([value], dst=0)
        return
    yield value
    for other in range(1, world_size()):
        box: list[Any] = [None]
        dist.recv_object_list(box, src=other)
        yield box[0]


def stop_together(error: TractAtlasError | None) -> None:
    """End all processes if one of them can't continue; only one of them reports the error.

    Args:
        error: why this process can't continue; None if it can.

    Raises:
        TractAtlasError: the error, in the first process that has one.
        StoppedElsewhere: in the others.
    """
    codes = everyones(None if error is None else error.exit_code)
    failed = [number for number, code in enumerate(codes) if code is not None]
    if not failed:
        return
    if error is not None and rank() == failed[0]:
        raise error
    raise StoppedElsewhere(codes[failed[0]])


def from_first(make: Callable[[], T]) -> T:
    """The result of ``make``, which only the first process calls, for all processes.

    Raises:
        TractAtlasError: as ``make`` raised it, in the first process.
        StoppedElsewhere: in the other processes.
    """
    if world_size() == 1:
        return make()
    box: list[Any] = [None]
    error = None
    if is_first():
        try:
            box = [make()]
        except TractAtlasError as failure:
            error = failure
    stop_together(error)
    made = box[0]
    dist.broadcast_object_list(box, src=0)
    return made if is_first() else box[0]
