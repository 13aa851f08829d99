"""A run that was cut and resumed gives the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.atlas.handlers.centring import Centring
from scripts.engines.handlers import (
    EarlyStop,
    LearningRateSchedule,
    LossHistory,
    NonFiniteGuard,
    TrainingCheckpoint,
)
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError, StorageError
from scripts.networks.checkpoint import previous_of


class PowerCut:
    """Raises in the middle of an epoch."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.iteration == self.iteration:
            raise KeyboardInterrupt


class Used:
    """Counts the iterations that were really run."""

    def __init__(self) -> None:
        self.subjects: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.subjects.append([one["subject"] for one in output])


def train(
    training: Any,
    state: RunState,
    cut: int = 0,
    interval: int = 1,
    patience: int = 0,
    schedule: str = "cosine",
) -> tuple[TrainingCheckpoint, Used]:
    """Run with the handlers of a real run."""
    used = Used()
    checkpoint = TrainingCheckpoint(
        state, training.network, training.optimizer, training.batches, training.history, interval
    )
    handlers = [
        NonFiniteGuard(),
        LearningRateSchedule(
            training.optimizer,
            1,
            schedule=schedule,
            schedule_epochs=1,
            schedule_factor=0.3,
            history=training.history,
        ),
        Centring(training.network),
        training.history,
        used,
        EarlyStop(training.history, patience),
        *([PowerCut(cut)] if cut else []),
        checkpoint,
    ]
    training.trainer(handlers).run()
    return checkpoint, used


def everything(training: Any) -> dict[str, Any]:
    """All that a run leaves."""
    moments = training.optimizer.state_dict()["state"]
    return {
        **training.network.state_dict(),
        **{f"{i}.{name}": value for i, m in moments.items() for name, value in m.items()},
        **{f"epoch {i}": epoch for i, epoch in enumerate(training.history.epochs)},
    }


def assert_equal(a: Any, b: Any) -> None:
    result, expected = everything(a), everything(b)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(result[name], value), name
        else:
            assert result[name] == value, name


SETTINGS: dict[str, Any] = {
    "optimizer": {"epochs": 5, "batch_size": 3, "lr": 5e-3},
    "loss": {"centrality_weight": 1.0},
}


@pytest.mark.parametrize(
    ("cut", "interval", "schedule"),
    [
        (6, 1, "cosine"), (5, 1, "step"), (1, 1, "one_cycle"), (9, 2, "cosine"), (4, 2, "plateau"),
        (8, 1, "plateau"),
    ],
)  # fmt: skip
def test_a_cut_run_continues_as_if_nothing_had_happened(
    cut: int, interval: int, schedule: str, make_training: Callable[..., Any]
) -> None:
    unbroken = make_training(**SETTINGS)
    folder = unbroken.folder
    _, all_used = train(
        unbroken,
        RunState(folder / "a", unbroken.settings, unbroken.cohort),
        interval=interval,
        schedule=schedule,
    )

    broken = make_training(**SETTINGS)
    state = RunState(folder / "b", broken.settings, broken.cohort)
    with pytest.raises(KeyboardInterrupt):
        train(broken, state, cut=cut, interval=interval, schedule=schedule)

    torch.manual_seed(99)  # another process has other random numbers
    resumed = make_training(**SETTINGS)
    state = RunState(folder / "b", resumed.settings, resumed.cohort)
    _, used = train(resumed, state, interval=interval, schedule=schedule)
    saved = (cut - 1) // 2 // interval * interval
    assert used.subjects == all_used.subjects[2 * saved :]
    assert_equal(resumed, unbroken)


def test_a_finished_training_is_loaded_and_not_run_again(
    make_training: Callable[..., Any],
) -> None:
    first = make_training(**SETTINGS)
    folder = first.folder / "run"
    train(first, RunState(folder, first.settings, first.cohort))
    again = make_training(**SETTINGS)
    _, used = train(again, RunState(folder, again.settings, again.cohort))
    assert used.subjects == []
    assert_equal(again, first)


def test_a_run_that_stopped_early_stays_stopped(make_training: Callable[..., Any]) -> None:
    settings = {**SETTINGS, "optimizer": {"epochs": 6, "batch_size": 4, "lr": 1e-12}}
    first = make_training(**settings)
    folder = first.folder / "run"
    checkpoint, used = train(first, RunState(folder, first.settings, first.cohort), patience=2)
    assert checkpoint.stopped
    assert len(used.subjects) == 3
    again = make_training(**settings)
    state = RunState(folder, again.settings, again.cohort)
    checkpoint, used = train(again, state, patience=2)
    assert used.subjects == []
    assert_equal(again, first)


def test_the_checkpoint_holds_nothing_but_tensors_and_plain_values(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(**SETTINGS)
    state = RunState(training.folder / "run", training.settings, training.cohort)
    train(training, state)
    result = torch.load(state.training, weights_only=True)
    assert result["epoch"] == 5
    assert result["history"] == training.history.epochs
    names = {"run.json", "training.pt", "training.previous.pt"}
    assert {p.name for p in state.folder.iterdir()} == names
    state.finish("")  # nothing continues from there any more
    assert {p.name for p in state.folder.iterdir()} == {"run.json", "training.pt"}


def test_a_damaged_checkpoint_is_named_and_training_continues_from_the_one_before(
    make_training: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    training = make_training(**SETTINGS)
    state = RunState(training.folder / "run", training.settings, training.cohort)
    train(training, state)
    whole = torch.load(state.training, weights_only=True)
    raw = bytearray(state.training.read_bytes())
    raw[len(raw) // 2] ^= 16
    state.training.write_bytes(raw)
    again = make_training(**SETTINGS)
    train(again, RunState(state.folder, again.settings, again.cohort))
    assert f"{state.training}: " in caplog.text
    for name, tensor in torch.load(state.training, weights_only=True)["network"].items():
        assert torch.equal(tensor, whole["network"][name]), name


def test_without_one_before_a_damaged_checkpoint_is_refused(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(**SETTINGS)
    state = RunState(training.folder / "run", training.settings, training.cohort)
    train(training, state)
    state.training.write_bytes(state.training.read_bytes()[:100])
    previous_of(state.training).unlink()
    again = make_training(**SETTINGS)
    with pytest.raises(CheckpointError, match=r"training\.pt"):
        train(again, RunState(state.folder, again.settings, again.cohort))


def test_a_training_without_room_for_its_checkpoint_ends_before_the_first_step(
    disk: Callable[[int], None], tmp_path: Path
) -> None:
    network = torch.nn.Linear(100, 99)  # 9,999 numbers
    state = SimpleNamespace(training=tmp_path / "training.pt", folder=tmp_path)
    optimizer = torch.optim.Adam(network.parameters())
    handler = TrainingCheckpoint(state, network, optimizer, SimpleNamespace(), LossHistory())
    disk(10 * 4 * 9_999 - 1)
    with pytest.raises(StorageError, match="checkpoints"):
        handler.load(SimpleNamespace())
    disk(10 * 4 * 9_999)
    handler.load(SimpleNamespace())
    assert not list(tmp_path.iterdir())
