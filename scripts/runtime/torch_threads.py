"""How PyTorch's threads are divided among subjects that are computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["divided_threads", "subjects_at_once"]

_MOST = 4  # each takes memory; with more, the threads within a subject use the cores as well


def subjects_at_once(voxels: int, device: torch.device, most_voxels: int) -> int:
    """How many subjects to compute at once: one per thread of PyTorch, if memory allows.

    One thread each keeps cores busier than several threads for one subject, which wait for each
    other after every operation.

    Args:
        voxels: of one subject.
        device: of the computation; another one than the CPU takes one subject at a time.
        most_voxels: of all subjects at once; a single subject may have more.
    """
    if device.type != "cpu":
        return 1
    return max(1, min(_MOST, torch.get_num_threads(), most_voxels // max(1, voxels)))


@contextmanager
def divided_threads(workers: int) -> Iterator[None]:
    """Divide PyTorch's threads among so many workers, which must be started in the block."""
    before = torch.get_num_threads()
    if workers <= 1:
        yield
        return
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
