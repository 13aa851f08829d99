"""How much memory is available, and a warning before a container's limit is reached."""

from __future__ import annotations

import logging
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "warn_near_limit"]

logger = logging.getLogger(__name__)

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Where groups of processes have limits, and their files: limit, usage, and the part of it that is
# file cache and can be dropped. Of version 2 and of version 1.
_LIMITS = (
    (Path("/sys/fs/cgroup"), "", "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
_NEAR = 0.93  # of the limit: then it is reported
_OFTEN_S = 0.05
_THREAD = "watch memory"


def available_memory() -> int | None:
    """Bytes that a process can take without swapping; None where the system doesn't say.

    The smallest of the kernel's estimate for the machine, what the limits of the container and of
    each group above it leave, and what the process's limit (``ulimit -v``) leaves.
    """
    amounts = [limit - used for limit, used in _group_limits()]
    with suppress(OSError, ValueError, StopIteration):
        amounts.append(1024 * _entry(_MEMINFO, "MemAvailable:"))
    process_limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if process_limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            amounts.append(process_limit - pages * resource.getpagesize())
    return max(0, min(amounts)) if amounts else None


def warn_near_limit() -> None:
    """Watch the container's limit of memory, where it has one, and warn once when it is near.

    Beyond the limit the system kills a process, which then can't say anything. Watches in the
    background until the process ends.
    """
    named = any(thread.name == _THREAD for thread in threading.enumerate())
    if not named and _closest() is not None:
        threading.Thread(target=_watch, name=_THREAD, daemon=True).start()


def _watch() -> None:
    pause = threading.Event()
    while not pause.wait(_OFTEN_S):
        closest = _closest()
        if closest is None:
            return
        limit, used = closest
        if used > _NEAR * limit:
            logger.warning(
                "%.2f of the %.2f GB of memory that this container or group of processes may use "
                "are in use: the system ends the run (status 137) if it needs more; then give it "
                "more memory, or ask for less (cache, batch_size, n_workers)",
                used / 1e9, limit / 1e9,
            )  # fmt: skip
            return


def _closest() -> tuple[int, int] | None:
    """Limit and usage of the group that has the smallest share left; None without a limit."""
    return max(_group_limits(), key=lambda one: one[1] / max(1, one[0]), default=None)


def _group_limits() -> Iterator[tuple[int, int]]:
    """Limit and usage, bytes, of this process's groups that have a limit."""
    for top, kind, limit, usage, droppable in _LIMITS:
        for folder in _groups(top, kind):
            with suppress(OSError, ValueError, StopIteration):  # "max" is not a number: no limit
                most = int((folder / limit).read_text())
                used = int((folder / usage).read_text())
                used -= _entry(folder / "memory.stat", droppable)
                if most < 1 << 60:  # version 1 writes a huge number where there is none
                    yield most, max(0, used)


def _groups(top: Path, kind: str) -> list[Path]:
    """Folders of the groups that this process belongs to, and of those above them."""
    folders = [top]
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kind in kinds.split(","):
                parts = [part for part in path.split("/") if part not in ("", "..")]
                folders += [top.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return [folder for folder in folders if folder.is_dir()]


def _entry(file: Path, name: str) -> int:
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)
