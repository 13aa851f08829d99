"""How much memory is available."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory"]

_MEMINFO = Path("/proc/meminfo")
# A container's limit, its usage, and the part of it that is file cache and can be dropped:
# cgroups of version 2 and of version 1.
_LIMITS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_memory() -> int | None:
    """Bytes that a process can take without swapping; None where the system doesn't say.

    The smaller of the kernel's estimate for the machine and what the container's limit leaves.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        found.append(1024 * _entry(_MEMINFO, "MemAvailable:"))
    for folder, limit, usage, droppable in _LIMITS:
        with suppress(OSError, ValueError, StopIteration):
            used = int((folder / usage).read_text()) - _entry(folder / "memory.stat", droppable)
            found.append(max(0, int((folder / limit).read_text()) - used))
    return min(found, default=None)


def _entry(file: Path, name: str) -> int:
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)
