"""Which items a batch takes, and how often an epoch repeats them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

__all__ = ["EpochBatches", "RepeatedDataset"]


class EpochBatches(Sampler[list[int]]):
    """Batches of shuffled indices, epoch after epoch without end; the last part-batch is kept.

    The order of an epoch depends on (seed, epoch) alone, so that a run which resumes sees the
    subjects in the order in which an uninterrupted one would. Being endless, it is iterated once
    a run, whatever the engine does between epochs. Over several processes each gets its slice of
    every batch, so that the global batch is the same. Where a batch (the last, most often) has
    fewer subjects than there are processes, those without one get another's as a stand-in: it
    keeps them in step and counts for nothing, see `sizes`.

    Args:
        size: how many subjects.
        batch_size: a global batch.
        seed: of the shuffling.
        rank: of this process.
        world_size: how many processes.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_epoch = 0

    def __len__(self) -> int:
        """Batches in one epoch."""
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from `first_epoch` on."""
        epoch = self.first_epoch
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            for start in range(0, self.size, self.batch_size):
                batch = order[start : start + self.batch_size]
                own = batch[self.rank :: self.world_size]
                yield (own if len(own) else batch[:1]).tolist()
            epoch += 1

    def sizes(self, iteration: int) -> tuple[int, int]:
        """How many subjects of a batch are this process's (0: a stand-in), and of all processes.

        Args:
            iteration: as the engine counts them, from 1 on.
        """
        start = (iteration - 1) % len(self) * self.batch_size
        whole = min(self.batch_size, self.size - start)
        return len(range(self.rank, whole, self.world_size)), whole


class RepeatedDataset(Dataset[dict[str, Any]]):
    """A dataset whose every item comes several times; what is made of it differs each time.

    Args:
        data: the dataset.
        times: how often each item comes.
    """

    def __init__(self, data: Any, times: int) -> None:
        self.data = data
        self.times = times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index % len(self.data)]
