"""Writing files beside the computation of the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

__all__ = ["WriteBehind"]


class WriteBehind:
    """Runs writers on threads of their own, a few at a time.

    Compressing a field takes longer than computing it and lets go of the interpreter, so that it
    runs beside the next subject's computation. At most ``pending`` calls wait or run at once:
    what they hold in memory doesn't grow with the cohort. The first error of a writer is raised
    by a later `write` or by the end of the block; no file is missing silently.

    Args:
        threads: that write.
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
        """Let ``writer(*arguments)`` run beside; the arguments must not be changed any more."""
        while len(self.futures) >= self.pending:
            self.futures.popleft().result()
        self.futures.append(self.executor.submit(writer, *arguments))

    def finish(self) -> None:
        """Wait until everything is written, and raise what failed."""
        while self.futures:
            self.futures.popleft().result()

    def close(self) -> None:
        """Drop the calls that only wait, and wait for those that run; their errors are lost."""
        self.executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all of them; after an error, for those that run already."""
        try:
            if error is None:
                self.finish()
        finally:
            self.close()
