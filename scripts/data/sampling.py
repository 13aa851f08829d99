"""Which items each batch contains, and how often an epoch repeats them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

__all__ = ["EpochBatches", "RepeatedDataset"]


class EpochBatches(Sampler[list[int]]):
    """Endless batches of shuffled indices, epoch after epoch; keeps the last, smaller batch.

    The order of an epoch depends only on (seed, epoch), so that a resumed run sees the subjects in
    the order of an uninterrupted one. Because it is endless, it is iterated once per run, whatever
    the engine does between epochs. With several processes each gets its slice of every batch, so
    that the global batch is the same. If a batch (usually the last) has fewer subjects than there
    are processes, those without a subject get a stand-in that keeps them in step and doesn't count,
    see `sizes`.

    Args:
        size: number of subjects.
        batch_size: of the global batch.
        seed: of the shuffling.
        rank: of this process.
        world_size: number of processes.
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
        """Number of batches in an epoch."""
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches starting at `first_epoch`."""
        epoch = self.first_epoch
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            for start in range(0, self.size, self.batch_size):
                batch = order[start : start + self.batch_size]
                local = batch[self.rank :: self.world_size]
                yield (local if len(local) else batch[:1]).tolist()
            epoch += 1

    def sizes(self, iteration: int) -> tuple[int, int]:
        """Number of subjects of a batch in this process (0: only a stand-in), and in all processes.

        Args:
            iteration: as the engine counts it, from 1.
        """
        start = (iteration - 1) % len(self) * self.batch_size
        whole = min(self.batch_size, self.size - start)
        return len(range(self.rank, whole, self.world_size)), whole


class RepeatedDataset(Dataset[dict[str, Any]]):
    """A dataset that contains every item several times, for random transforms.

    Args:
        data: the dataset.
        times: number of repetitions of each item.
    """

    def __init__(self, data: Any, times: int) -> None:
        self.data = data
        self.times = times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index % len(self.data)]
