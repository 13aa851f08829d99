"""Agreement between processes: two real ones over gloo, and what a single one sees of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scripts.errors import CohortError, FoldingError, TractAtlasError
from scripts.runtime import processes
from scripts.runtime.processes import StoppedElsewhere

# -- alone -----------------------------------------------------------------------------------


def test_a_single_process_is_the_first_and_has_everything() -> None:
    assert (processes.rank(), processes.world_size(), processes.is_first()) == (0, 1, True)
    assert list(processes.share(3)) == [0, 1, 2]
    total = torch.ones(2)
    processes.add_up(total)
    assert total.tolist() == [1, 1]
    assert processes.everyones("a") == ["a"]
    assert list(processes.collected_by_first("a")) == ["a"]
    assert processes.from_first(lambda: "a") == "a"
    processes.barrier()
    processes.stop_together(None)
    with pytest.raises(CohortError, match="mine"):
        processes.stop_together(CohortError("mine"))


# -- two -------------------------------------------------------------------------------------


def raised(work: Callable[[], Any]) -> tuple[str, Any]:
    """What ends ``work``: the error's message, or the status of a silent end."""
    try:
        work()
    except TractAtlasError as error:
        return "told", str(error)
    except StoppedElsewhere as end:
        return "silent", end.code
    return "went on", None


def refuse() -> None:
    raise CohortError("no such folder")


def work_of_one(rank: int, folder: str) -> None:
    """Everything that one of two processes does; what it found goes to a file."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    result: dict[str, Any] = {"share": list(processes.share(5))}
    total = torch.full((2,), float(rank + 1), dtype=torch.float64)
    processes.add_up(total)
    result["sum"] = total.tolist()
    result["everyones"] = processes.everyones({"rank": rank})
    result["from_first"] = processes.from_first(lambda: f"made by {rank}")
    result["parts"] = list(processes.collected_by_first(f"from {rank}"))
    result["ends"] = [
        raised(lambda: processes.stop_together(None)),
        raised(lambda: processes.stop_together(FoldingError("folds") if rank == 1 else None)),
        raised(lambda: processes.stop_together(FoldingError(f"rank {rank}"))),
        raised(lambda: processes.from_first(refuse)),
    ]
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(work_of_one, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_subjects_are_shared_out(pair: list[dict[str, Any]]) -> None:
    assert [one["share"] for one in pair] == [[0, 2, 4], [1, 3]]


def test_sums_and_messages_reach_both(pair: list[dict[str, Any]]) -> None:
    for one in pair:
        assert one["sum"] == [3, 3]
        assert one["everyones"] == [{"rank": 0}, {"rank": 1}]
        assert one["from_first"] == "made by 0"
    assert [one["parts"] for one in pair] == [["from 0", "from 1"], []]


def test_one_reports_and_both_end(pair: list[dict[str, Any]]) -> None:
    code = FoldingError.exit_code
    assert pair[0]["ends"] == [
        ("went on", None), ("silent", code), ("told", "rank 0"), ("told", "no such folder"),
    ]  # fmt: skip
    assert pair[1]["ends"] == [
        ("went on", None), ("told", "folds"), ("silent", code), ("silent", CohortError.exit_code),
    ]  # fmt: skip
