"""Several processes as one run: who does what, and what all of them have to know.

Thin over ``torch.distributed``: the process group is made by whoever starts the run (see
``configs/multi_gpu_train.yaml``). Without one, everything here is that of a single process and
costs nothing. Functions that communicate are called by every process, in the same order.
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
    """Another process of the run tells why it ends; this one ends with its status in silence."""


def world_size() -> int:
    """How many processes make up the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes what a run writes once, and talks to the user."""
    return rank() == 0


def share(count: int) -> range:
    """Which of ``count`` subjects are this process's: every n-th, from its rank on."""
    return range(rank(), count, world_size())


def add_up(*tensors: torch.Tensor) -> None:
    """Replace each tensor, in place, by its sum over the processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def barrier() -> None:
    """Wait for the others."""
    if world_size() > 1:
        # A collective of plain objects, since a barrier of NCCL's needs to be told its device.
        everyones(None)


def everyones(value: T) -> list[T]:
    """What each process holds, by rank; small things, since all of them get all of it."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def collected_by_first(value: T) -> Iterator[T]:
    """In the first process what each one holds, one at a time; in the others nothing.

    To be iterated to its end by all. However large they are, only two are in memory at once.
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
    """End all processes if one of them can't go on; only one of them tells the user.

    Args:
        error: why this process can't; None if it can.

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
    """What ``make`` returns in the first process, where alone it is called, for all of them.

    Raises:
        TractAtlasError: as ``make`` raised it, in the first process.
        StoppedElsewhere: in the others, then.
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
