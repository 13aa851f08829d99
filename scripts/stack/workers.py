"""Work on sections, side by side: dask's threads or processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from scripts.stack.libraries import require

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """Runs functions over a list of arguments, a few at a time.

    Each call computes with one thread, so that its result is bit-identical wherever it runs.
    The next few calls start when the last ones are done and their results were taken, so that
    memory doesn't grow with the list.

    Args:
        count: calls at the same time.
        scheduler: ``threads`` or ``processes`` of dask.

    Example:
        >>> with Workers(2) as workers:
        ...     list(workers.map(pow, [(2, 3), (3, 2)]))
        [8, 9]
    """

    def __init__(self, count: int, scheduler: str = "threads") -> None:
        self.dask = require("dask")
        self.count, self.scheduler = count, scheduler
        self.pool: Executor | None = None
        self.threads = 1

    def __enter__(self) -> Self:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        if self.scheduler == "processes":
            # Not forked: a fork of a process with threads may never end.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, mp_context=context)
        else:
            self.pool = ThreadPoolExecutor(self.count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.pool is not None
        self.pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.threads)

    def map(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """``function(*one)`` for every entry, in order; its errors are raised here.

        Args:
            function: of a module, for other processes to import.
            arguments: of each call.
        """
        batch = 2 * self.count
        for first in range(0, len(arguments), batch):
            part = arguments[first : first + batch]
            calls = [self.dask.delayed(_alone, pure=False)(function, one) for one in part]
            yield from self.dask.compute(
                *calls, scheduler=self.scheduler, pool=self.pool, num_workers=self.count,
                optimize_graph=False, chunksize=1,
            )  # fmt: skip


def _alone(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    torch.set_num_threads(1)
    return function(*arguments)
