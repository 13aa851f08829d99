"""CPU seconds and memory of the jobs of a benchmark."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Cost"]

T = TypeVar("T")


class Cost:
    """CPU seconds of named jobs, and peak memory after some of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.gib: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], T]) -> T:
        """The result of a job; its seconds are added."""
        start = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - start
        return result

    def memory(self, when: str) -> None:
        """Note the peak of the process so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.gib[when] = peak / 2**20
