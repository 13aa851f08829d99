"""Batches of an epoch: every subject once, in an order that seed and epoch give."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from scripts.data import (
    EpochBatches,
)


def epochs(batches: EpochBatches, number: int) -> list[list[list[int]]]:
    flat = list(islice(iter(batches), number * len(batches)))
    return [flat[e * len(batches) : (e + 1) * len(batches)] for e in range(number)]


sizes = {"size": st.integers(1, 20), "batch_size": st.integers(1, 7), "seed": st.integers(0, 5)}


@given(**sizes)
def test_every_subject_comes_once_an_epoch(size: int, batch_size: int, seed: int) -> None:
    batches = EpochBatches(size, batch_size, seed)
    for epoch in epochs(batches, 3):
        assert sorted(i for batch in epoch for i in batch) == list(range(size))
        assert all(len(batch) == batch_size for batch in epoch[:-1])
        assert len(epoch[-1]) == (size - 1) % batch_size + 1  # the last part-batch is kept


@given(**sizes)
def test_the_order_is_that_of_seed_and_epoch_alone(size: int, batch_size: int, seed: int) -> None:
    unbroken = epochs(EpochBatches(size, batch_size, seed), 4)
    assert epochs(EpochBatches(size, batch_size, seed), 4) == unbroken
    resumed = EpochBatches(size, batch_size, seed)
    resumed.first_epoch = 2
    assert epochs(resumed, 2) == unbroken[2:]


def test_orders_differ_between_epochs_and_seeds() -> None:
    first, second = epochs(EpochBatches(20, 20, 0), 2)
    (other,) = epochs(EpochBatches(20, 20, 1), 1)
    assert first != second
    assert first != other
    assert first != [[list(range(20))]]


@given(world_size=st.integers(1, 4), **sizes)
def test_processes_share_each_batch_out(
    world_size: int, size: int, batch_size: int, seed: int
) -> None:
    one = epochs(EpochBatches(size, batch_size, seed), 2)

    def make(rank: int) -> EpochBatches:
        return EpochBatches(size, batch_size, seed, rank, world_size)

    each = [epochs(make(rank), 2) for rank in range(world_size)]
    for e, epoch in enumerate(one):
        for b, batch in enumerate(epoch):
            sizes = [make(rank).sizes(e * len(epoch) + b + 1) for rank in range(world_size)]
            assert [whole for _, whole in sizes] == [len(batch)] * world_size
            parts = []
            for ranks, (own, _) in zip(each, sizes, strict=True):
                given_out = ranks[e][b]
                assert given_out  # a process without a subject of its own gets a stand-in,
                assert set(given_out) <= set(batch)
                assert len(given_out) == max(own, 1)
                parts.append(given_out[:own])  # which doesn't count
            assert sorted(i for part in parts for i in part) == sorted(batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
