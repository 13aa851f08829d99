"""Results in order, few at once, errors in their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from scripts.runtime.ordered_map import ordered_map
from scripts.runtime.torch_threads import divided_threads, subjects_at_once


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    result = list(ordered_map(slow_at_first, range(20), workers))
    assert result == [(item, item * item) for item in range(20)]


def test_calls_run_at_once() -> None:
    both = threading.Barrier(2, timeout=20)
    assert len(list(ordered_map(lambda _: both.wait(), range(4), 2))) == 4


def test_one_worker_is_the_calling_thread() -> None:
    (result,) = ordered_map(lambda _: threading.get_ident(), [0], 1)
    assert result[1] == threading.get_ident()


def test_few_results_exist_at_once() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    for item, _ in ordered_map(str, items(), 3):
        assert len(taken) <= item + 1 + 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_in_its_turn_and_ends_the_work(workers: int) -> None:
    begun: list[int] = []

    def failing(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    result = ordered_map(failing, range(100), workers)
    assert next(result) == (0, 0)
    with pytest.raises(ValueError, match="one"):
        next(result)
    assert len(begun) <= 2 + workers
    assert list(result) == []


def test_threads_of_pytorch_are_divided_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with divided_threads(3):
            counts = [count for _, count in ordered_map(lambda _: torch.get_num_threads(), "ab", 2)]
            assert counts == [2, 2]
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "voxels", "device", "expected"),
    [(1, 10, "cpu", 1), (2, 10, "cpu", 2), (64, 10, "cpu", 4), (4, 40, "cpu", 2),
     (4, 1000, "cpu", 1), (4, 10, "cuda", 1)],
)  # fmt: skip
def test_as_many_subjects_as_threads_and_memory_allow(
    threads: int, voxels: int, device: str, expected: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert subjects_at_once(voxels, torch.device(device), 100) == expected
    finally:
        torch.set_num_threads(before)
