"""The trainer's handlers, on real trainers where that matters and small engines else."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.engines.utils import IterationEvents

from scripts.atlas.handlers.centring import Centring
from scripts.atlas.handlers.fold_monitor import FoldMonitor
from scripts.atlas.handlers.snapshots import TemplateSnapshots
from scripts.atlas.network import AtlasNetwork
from scripts.engines.handlers import (
    EarlyStop,
    LearningRateSchedule,
    LossHistory,
    NonFiniteGuard,
    ProgressBar,
)
from scripts.errors import StorageError, TrainingError


def engine_of(losses: list[float], **more: list[float]) -> Engine:
    """An engine whose iterations give these losses, in turn."""

    def step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        place = engine.state.iteration - 1
        values = {"loss": losses[place], **{name: v[place] for name, v in more.items()}}
        return {name: torch.tensor(value) for name, value in values.items()}

    return Engine(step)


# -- LearningRateSchedule --------------------------------------------------------------------


def rates(warmup_epochs: int, length: int, epochs: int, start: int = 0) -> dict[str, list[float]]:
    """Rates of both groups at every iteration, with peaks 1 and 5."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0, "name": "network"},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 5.0, "name": "template"},
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = LearningRateSchedule(optimizer, warmup_epochs)
    result: dict[str, list[float]] = {"network": [], "template": []}
    for step in range(start, length * epochs):
        state = SimpleNamespace(iteration=step + 1, epoch_length=length, max_epochs=epochs)
        schedule(SimpleNamespace(state=state))  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            result[group["name"]].append(group["lr"])
    return result


def test_rates_rise_then_fall_along_a_cosine() -> None:
    result = rates(warmup_epochs=2, length=20, epochs=10)
    for step, rate in enumerate(result["network"]):
        cosine = 0.5 * (1 + math.cos(math.pi * step / 200))
        expected = (0.01 + 0.99 * cosine) * min(1, (step + 1) / 20)
        assert rate == pytest.approx(expected)
    assert max(result["network"]) > 0.95
    assert 0 < result["network"][-1] < 0.02


def test_the_template_waits_for_the_warm_up() -> None:
    result = rates(warmup_epochs=2, length=20, epochs=10)
    assert result["template"][:40] == [0.0] * 40
    for network, template in zip(result["network"][40:], result["template"][40:], strict=True):
        assert template == pytest.approx(5 * network)


def test_a_short_epoch_rises_over_ten_steps_at_least() -> None:
    result = rates(warmup_epochs=2, length=3, epochs=20)["network"]
    unwarmed = rates(warmup_epochs=0, length=3, epochs=20)["network"]
    shares = [a / b for a, b in zip(result, unwarmed, strict=True)]
    assert shares == pytest.approx([min(1, (step + 1) / 10) for step in range(60)])


def test_without_a_warm_up_the_peak_comes_first_and_nothing_waits() -> None:
    result = rates(warmup_epochs=0, length=5, epochs=4)
    assert result["network"][0] == 1
    assert result["template"][0] == 5


def test_a_run_shorter_than_its_warm_up_still_learns_a_template() -> None:
    assert min(rates(warmup_epochs=2, length=5, epochs=2)["template"]) > 0


def test_rates_depend_on_the_iteration_alone() -> None:
    unbroken, resumed = rates(2, 5, 6), rates(2, 5, 6, start=17)
    for name, values in resumed.items():
        assert values == unbroken[name][17:]


def test_rates_are_set_before_each_iteration() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    seen: list[float] = []
    engine = Engine(lambda e, b: seen.append(optimizer.param_groups[0]["lr"]))
    LearningRateSchedule(optimizer, warmup_epochs=1).attach(engine)
    engine.run(range(20), max_epochs=2)
    assert seen[:3] == pytest.approx([1 / 20, 2 / 20, 3 / 20], rel=0.02)


# -- LossHistory, EarlyStop ------------------------------------------------------------------


def test_history_holds_the_mean_of_each_term_over_each_epoch() -> None:
    history = LossHistory()
    engine = engine_of([1, 2, 6, 10, 20, 60], presence=[0, 3, 0, 1, 1, 1])
    history.attach(engine)
    engine.run(range(3), max_epochs=2)
    assert history.epochs == [
        pytest.approx({"loss": 3, "presence": 1}), pytest.approx({"loss": 30, "presence": 1}),
    ]  # fmt: skip


def test_history_of_a_real_trainer_is_the_mean_over_its_iterations(
    make_training: Callable[..., Any],
) -> None:
    """MONAI cuts an iteration's output into subjects before handlers see it."""
    training, seen = make_training(optimizer={"batch_size": 3}), []

    class Watch:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

        def __call__(self, engine: Any) -> None:
            output = engine.state.output
            seen.append({k: float(output[k]) for k in output if torch.is_tensor(output[k])
                         and not output[k].dim()})  # fmt: skip

    training.trainer([Watch(), training.history]).run()
    assert len(seen) == 4
    for e, epoch in enumerate(training.history.epochs):
        assert set(epoch) == {"loss", "similarity", "presence", "smoothness", "centrality"}
        for name, value in epoch.items():
            both = [one[name] for one in seen[2 * e : 2 * e + 2]]
            assert value == pytest.approx(sum(both) / 2, rel=1e-5)


def test_history_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = LossHistory(tmp_path / "events")
    engine = engine_of([4, 2, 1, 1])
    history.attach(engine)
    engine.run(range(2), max_epochs=2)
    result = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in result] == [(1, 3.0), (2, 1.0)]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = engine_of([1.0])
    LossHistory(tmp_path / "file" / "events").attach(engine)
    with pytest.raises(StorageError, match="can't be written"):
        engine.run(range(1), max_epochs=1)


@pytest.mark.parametrize(
    ("losses", "patience", "stops_after"),
    [
        ([5, 4, 3, 2, 1, 0.5], 2, 6),
        ([5, 4, 4, 4, 4, 4], 2, 4),
        ([5, 4, 4.5, 3, 3.5, 3.2], 2, 6),
        ([5, 6, 7, 8, 9, 9], 1, 2),
        ([5, 4.99999, 4.99998, 4.99997, 4.99996, 4], 3, 4),  # no improvement worth the name
        ([-1, -2, -3, -3, -3, -3], 2, 5),
        ([5, 5, 5, 5, 5, 5], 0, 6),
    ],
)
def test_training_ends_when_the_loss_has_stopped_falling(
    losses: list[float], patience: int, stops_after: int
) -> None:
    engine, history = engine_of(losses), LossHistory()
    history.attach(engine)
    EarlyStop(history, patience).attach(engine)
    engine.run(range(1), max_epochs=6)
    assert len(history.epochs) == stops_after


def test_a_resumed_run_stops_where_the_unbroken_one_does() -> None:
    history = LossHistory()
    history.epochs = [{"loss": 3.0}, {"loss": 3.0}]
    engine = engine_of([3.0] * 9)
    history.attach(engine)
    EarlyStop(history, patience=3).attach(engine)
    engine.run(range(1), max_epochs=9)
    assert len(history.epochs) == 4


# -- NonFiniteGuard --------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_the_step(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(optimizer={"batch_size": 1, "epochs": 3})
    clean, calls = training.loss.smoothness.forward, []

    def broken(field: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return clean(field) * (float("nan") if len(calls) == 6 else 1)

    training.loss.smoothness.forward = broken
    order = [i for e in range(2) for i in next_epoch(training.batches, e)]
    with pytest.raises(TrainingError) as caught:
        training.trainer([NonFiniteGuard()]).run()
    message = str(caught.value)
    assert "epoch 2, iteration 6" in message
    assert f"subjects sub-{order[5] + 1} " in message
    assert "smoothness nan" in message
    assert len(calls) == 6
    assert all(torch.isfinite(p).all() for p in training.network.parameters())


def next_epoch(batches: Any, epoch: int) -> list[int]:
    """The order of one epoch of single subjects."""
    batches.first_epoch = epoch
    endless = iter(batches)
    order = [next(endless)[0] for _ in range(len(batches))]
    batches.first_epoch = 0
    return order


def test_a_network_that_is_no_longer_finite_is_not_saved(
    make_training: Callable[..., Any],
) -> None:
    training, saved = make_training(), []

    class Spoiler:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self)

        def __call__(self, engine: Engine) -> None:
            with torch.no_grad():
                training.network.unet.field.bias[0] = float("inf")

    class Saver:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: saved.append(1))

    with pytest.raises(TrainingError, match=r"parameter unet\.field\.bias is not finite"):
        training.trainer([Spoiler(), NonFiniteGuard(), Saver()]).run()
    assert not saved


def test_a_finite_run_passes(make_training: Callable[..., Any]) -> None:
    training = make_training()
    training.trainer([NonFiniteGuard(), training.history]).run()
    assert len(training.history.epochs) == 2


# -- Centring --------------------------------------------------------------------------------


def feed(handler: Centring, velocity: torch.Tensor, weight: torch.Tensor | None = None) -> None:
    weight = torch.ones(velocity.shape[:2]) if weight is None else weight
    output = {"velocity": velocity, "responsibility": weight}
    handler(SimpleNamespace(state=SimpleNamespace(output=output)))  # type: ignore[arg-type]


def test_the_running_mean_converges_to_the_cohorts(
    make_network: Callable[..., AtlasNetwork],
) -> None:
    network = make_network()
    torch.manual_seed(0)
    cohort = torch.randn(4, 1, 3, *network.reduced) + 1.5
    handler = Centring(network, rate=0.05)
    for _ in range(150):
        for batch in (cohort[:2], cohort[2:]):
            feed(handler, batch)
    away = (network.mean_velocity[0] - cohort[:, 0].mean(0)).square().mean().sqrt()
    assert away < 0.05 * cohort[:, 0].mean(0).square().mean().sqrt()


def test_each_template_follows_the_subjects_that_it_explains(
    make_network: Callable[..., AtlasNetwork],
) -> None:
    network = make_network(model={"n_templates": 1})
    two = AtlasNetwork(network.template.detach().repeat(2, 1, 1, 1, 1), enc_features=(4,),
                       dec_features=(4,), field_resolution=2)  # fmt: skip
    handler = Centring(two, rate=0.1)
    velocity = torch.zeros(4, 2, 3, *two.reduced)
    velocity[0] = 1.0
    velocity[1:] = -2.0
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    for _ in range(200):
        feed(handler, velocity, weight)
    torch.testing.assert_close(two.mean_velocity[0], torch.ones(3, *two.reduced), atol=0.02, rtol=0)
    torch.testing.assert_close(
        two.mean_velocity[1], torch.full((3, *two.reduced), -2.0), atol=0.02, rtol=0
    )
    torch.testing.assert_close(two.mixture, torch.tensor([0.25, 0.75]), atol=1e-4, rtol=0)


def test_a_template_without_subjects_keeps_its_mean(
    make_network: Callable[..., AtlasNetwork],
) -> None:
    network = make_network()
    network.mean_velocity.fill_(0.5)
    velocity = torch.full((1, 1, 3, *network.reduced), 9.0)
    feed(Centring(network), velocity, torch.zeros(1, 1))
    assert (network.mean_velocity == 0.5).all()
    assert torch.isfinite(network.mixture).all()


def test_centring_sees_every_iteration_of_a_real_trainer(
    make_training: Callable[..., Any],
) -> None:
    training = make_training()
    with torch.no_grad():
        training.network.unet.field.bias.fill_(1.0)
    training.trainer([Centring(training.network, rate=0.5)]).run()
    # Four steps of one half towards a velocity of about 1.
    assert float(training.network.mean_velocity.mean()) == pytest.approx(15 / 16, abs=0.05)


# -- TemplateSnapshots, FoldMonitor, ProgressBar ---------------------------------------------


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3]), (2, [2]), (0, [])])
def test_pictures_come_every_few_epochs(
    interval: int,
    expected: list[int],
    make_network: Callable[..., AtlasNetwork],
    tmp_path: Path,
) -> None:
    network, engine = make_network(), engine_of([1.0] * 3)
    TemplateSnapshots(network, tmp_path / "pictures", interval).attach(engine)
    engine.run(range(1), max_epochs=3)
    result = sorted(p.name for p in tmp_path.glob("pictures/*"))
    assert result == [f"template_epoch-{epoch:04d}.png" for epoch in expected]
    for name in result:
        picture = imread(tmp_path / "pictures" / name)
        rows, columns, _ = picture.shape
        assert rows == max(network.shape[1:])
        assert columns >= network.shape[1] + 2 * network.shape[0]
        assert picture[..., :3].max() > 0.5  # something bright on something dark
        assert picture[..., :3].min() < 0.1


@pytest.mark.parametrize("rough", [True, False])
def test_a_fold_is_warned_of_with_its_subject(
    rough: bool,
    make_network: Callable[..., AtlasNetwork],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = make_network()
    generator = torch.Generator().manual_seed(0)
    velocity = (6.0 if rough else 0.05) * torch.randn(1, 3, *network.reduced, generator=generator)
    output = [{"velocity": velocity, "subject": "sub-7"}]
    engine = Engine(lambda e, b: output)
    monitor = FoldMonitor(network, interval=2)
    monitor.attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run(range(1), max_epochs=5)
    assert [epoch for epoch, _ in monitor.smallest] == [2, 4]
    warnings = [r.getMessage() for r in caplog.records if "folds" in r.getMessage()]
    assert len(warnings) == (2 if rough else 0)
    assert all("epoch" in text and "sub-7" in text for text in warnings)
    assert (monitor.smallest[0][1] < 0.5) is rough


def test_the_fold_monitor_understands_a_real_trainer(make_training: Callable[..., Any]) -> None:
    training = make_training()
    monitor = FoldMonitor(training.network, interval=1)
    training.trainer([monitor]).run()
    assert [epoch for epoch, _ in monitor.smallest] == [1, 2]
    assert all(value == pytest.approx(1, abs=0.1) for _, value in monitor.smallest)


def test_the_bar_shows_epoch_and_loss_and_lets_errors_through(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = engine_of([0.125] * 4)
    ProgressBar().attach(engine)
    engine.run(range(2), max_epochs=2)
    text = capsys.readouterr().err
    assert "training, epoch 2/2" in text
    assert "4/4" in text
    assert "loss=0.125" in text

    def fails(engine: Engine, batch: Any) -> None:
        raise TrainingError("no")

    broken = Engine(fails)
    ProgressBar().attach(broken)
    with pytest.raises(TrainingError, match="no"):
        broken.run(range(1), max_epochs=1)
