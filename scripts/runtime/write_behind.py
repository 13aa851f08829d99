"""Writes files in the background while the next ones are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

__all__ = ["WriteBehind"]


class WriteBehind:
    """Runs writers in background threads, a few at a time.

    Compressing a field takes longer than computing it and releases the interpreter, so it can run
    while the next subject is computed. At most ``pending`` calls wait or run at once, so that
    memory doesn't grow with the cohort. The first error of a writer is raised by a later `write` or
    at the end of the block, so no file is missing silently.

    Args:
        threads: number of writing threads.
        pending: calls that may wait or run before `write` waits for the oldest.

    Example:
        >>> with WriteBehind() as behind:
        ...     behind.write(print, "beside")
        beside
    """

    def __init__(self, threads: int = 2, pending: int = 2) -> None:
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="write-behind")
        self.pending = pending
        self.futures: deque[Future[Any]] = deque()

    def write(self, writer: Callable[..., Any], *arguments: Any) -> None:
        """Call ``writer(*arguments)`` in the background; the arguments must not change any more."""
        while len(self.futures) >= self.pending:
            self.futures.popleft().result()
        self.futures.append(self.executor.submit(writer, *arguments))

    def finish(self) -> None:
        """Wait until everything is written, and raise the first error."""
        while self.futures:
            self.futures.popleft().result()

    def close(self) -> None:
        """Drop the waiting calls and wait for the running ones; ignore their errors."""
        self.executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all calls; after an error, only for those that already run."""
        try:
            if error is None:
                self.finish()
        finally:
            self.close()
