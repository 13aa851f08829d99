"""Warm-up and schedule of the learning rates."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events

from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.rates import RateShares

__all__ = ["LearningRateSchedule"]


class LearningRateSchedule:
    """Linear warm-up times a schedule; the template is fixed during the warm-up.

    The rates depend only on the iteration and on the losses of earlier epochs, which the history
    keeps, so a resumed run needs no further state.

    Args:
        optimizer: the initial rates of its groups are the peaks.
        warmup_epochs: the network's rate rises over the first of these epochs (at least 10 steps),
            unless the schedule itself begins with a rise. The template's rate is 0 during all of
            them, because a template that follows an untrained registration stays blurred.
        final_share: of the peak, at the end of a cosine.
        schedule: its name, see `RateScheduleConfig`.
        schedule_epochs: see `RateScheduleConfig`.
        schedule_factor: see `RateScheduleConfig`.
        history: of the losses, for schedule plateau.

    Raises:
        ValueError: schedule plateau without a history.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_epochs: int = 2,
        final_share: float = 0.01,
        schedule: str = "cosine",
        schedule_epochs: int = 10,
        schedule_factor: float = 0.1,
        history: LossHistory | None = None,
    ) -> None:
        if schedule == "plateau" and history is None:
            raise ValueError("schedule plateau needs a history of the losses")
        self.optimizer = optimizer
        self.warmup_epochs = warmup_epochs
        self.final_share = final_share
        self.schedule = schedule
        self.schedule_epochs = schedule_epochs
        self.schedule_factor = schedule_factor
        self.history = history
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self._shares: RateShares | None = None

    def attach(self, engine: Engine) -> None:
        """Set the rates before each iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the rates of the next iteration."""
        length, epochs = engine.state.epoch_length or 1, engine.state.max_epochs or 1
        step = engine.state.iteration - 1
        shares = self._of_run(length, length * epochs)
        losses = () if self.history is None else [one["loss"] for one in self.history.epochs]
        share = shares.at(step, losses)
        if self.warmup_epochs and not shares.rises:
            share *= min(1.0, (step + 1) / max(10, length))
        waiting = step < self.warmup_epochs * length and self.warmup_epochs < epochs
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            held = waiting and group.get("name") == "template"
            group["lr"] = 0.0 if held else peak * share

    def _of_run(self, length: int, steps: int) -> RateShares:
        """The schedule of a run of this length."""
        if self._shares is None or (self._shares.length, self._shares.steps) != (length, steps):
            self._shares = RateShares(
                self.schedule, steps, length, self.schedule_epochs, self.schedule_factor,
                self.final_share,
            )  # fmt: skip
        return self._shares
