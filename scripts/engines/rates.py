"""The share of the largest learning rate at each step of a training, by a schedule's name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim import lr_scheduler

from scripts.settings.schedules import SCHEDULES

__all__ = ["RateShares", "cosine_share", "late_cosine_share"]

_FINAL_SHARE = 0.01
_LEVEL = 0.6  # of the steps, after which a late cosine falls


def cosine_share(progress: float, final_share: float = _FINAL_SHARE) -> float:
    """A cosine from 1 to ``final_share``; ``progress`` of all steps is 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return final_share + (1 - final_share) * cosine


def late_cosine_share(progress: float) -> float:
    """1 for the first 60 % of the steps, then a cosine to 0."""
    fallen = max(0.0, (progress - _LEVEL) / (1 - _LEVEL))
    return (1 + math.cos(math.pi * fallen)) / 2


class RateShares:
    """Shares of the largest learning rate, from PyTorch's schedulers.

    A scheduler changes the rate of a separate optimizer, whose largest rate is 1. It is stepped
    again from the beginning when a training is resumed. A share therefore depends only on the step
    and the losses before it, and needs no state in a checkpoint.

    Args:
        name: one of `SCHEDULES`.
        steps: of the whole training.
        length: steps of an epoch.
        every: see `RateScheduleConfig.schedule_epochs`.
        factor: see `RateScheduleConfig.schedule_factor`.
        final_share: share at the end of a cosine.

    Raises:
        ValueError: the name is unknown.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        length: int,
        every: int = 10,
        factor: float = 0.1,
        final_share: float = _FINAL_SHARE,
    ) -> None:
        if name not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
        self.name = name
        self.steps = steps
        self.length = length
        self.every = every
        self.factor = factor
        self.final_share = final_share
        self._begin()

    @property
    def rises(self) -> bool:
        """Whether the schedule begins with a rise."""
        return self.name == "one_cycle"

    @property
    def level(self) -> float:
        """Progress, 0 to 1, until which the shares do not depend on the number of steps."""
        return {"late_cosine": _LEVEL, "cosine": 0.0, "one_cycle": 0.0}.get(self.name, 1.0)

    def at(self, step: int, losses: Sequence[float] = ()) -> float:
        """The share at a step, counted from 0.

        Args:
            step: of the training.
            losses: mean loss of every epoch before the step, for schedule plateau.
        """
        if step < self._step:
            self._begin()
        while self._step < step:
            self._step += 1
            if not isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
                self._scheduler.step()
            elif self._step % self.length == 0:
                self._scheduler.step(losses[self._step // self.length - 1])
        return float(self._optimizer.param_groups[0]["lr"])

    def _begin(self) -> None:
        self._step = 0
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self._scheduler = self._made(self._optimizer)
        self._optimizer.step()  # PyTorch warns of a scheduler whose optimizer never steps

    def _made(
        self, optimizer: torch.optim.Optimizer
    ) -> lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau:
        if self.name == "step":
            return lr_scheduler.StepLR(optimizer, self.every * self.length, self.factor)
        if self.name == "plateau":
            return lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=self.factor, patience=self.every - 1
            )
        if self.name == "one_cycle":
            return lr_scheduler.OneCycleLR(
                optimizer, max_lr=1.0, total_steps=self.steps, cycle_momentum=False
            )
        return lr_scheduler.LambdaLR(optimizer, self._share)

    def _share(self, step: int) -> float:
        if self.name == "cosine":
            return cosine_share(step / self.steps, self.final_share)
        return late_cosine_share(step / self.steps) if self.name == "late_cosine" else 1.0
