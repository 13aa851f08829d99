"""Keeps large blocks of memory in the process, so that the system needn't clear them each time."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT, _AHEAD = 2**31 - 1, 2**27  # bytes; the first is the largest that an int can say
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let later allocations reuse large blocks that were freed.

    glibc asks the system for every block of more than 32 MB, and returns it when it is freed. A
    volume of 145x174x145 voxels is such a block, and a step makes dozens. The system clears each of
    them page by page: a tenth of a step's time, and half of that of writing a field.

    Returns:
        Whether it was done: not with another allocator than glibc's, and not if the environment
        already says how to allocate.
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    done = [
        mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_TOP_PAD, _AHEAD),
    ]  # fmt: skip
    return all(done)
