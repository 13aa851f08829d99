"""Calls a function for one item after the other, in several threads, with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ordered_map", "reading_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with ``function(item)``, in the order of the items.

    What the caller does with a result runs while the next ones are computed. At most
    ``workers + 1`` results exist at once, so that memory doesn't grow with the number of items. The
    first error is raised in its turn; calls that haven't begun are then dropped.

    Args:
        function: must not change what other calls use. Modes of PyTorch that belong to a thread,
            such as `torch.no_grad`, are those of a new thread.
        items: whatever the function takes.
        workers: number of threads; 1: the calling thread alone.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ordered-map") as executor:
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                ahead.append((item, executor.submit(function, item)))
                if len(ahead) > workers:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def reading_threads() -> int:
    """Number of reading threads: decompression releases Python's lock, so a few are worth it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, usable or 1)
