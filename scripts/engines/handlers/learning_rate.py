"""Warm-up and cosine decay of both learning rates."""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine, Events

__all__ = ["LearningRateSchedule", "rate_share"]


def rate_share(progress: float, rise: float, final_share: float = 0.01) -> float:
    """Share of the highest learning rate: a linear rise times a falling cosine.

    Args:
        progress: of all steps, 0 to 1.
        rise: progress of the warm-up; finished from 1 on.
        final_share: at the end.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return (final_share + (1 - final_share) * cosine) * min(1.0, rise)


class LearningRateSchedule:
    """Linear warm-up, then a cosine to zero; the template is fixed during the warm-up.

    The rates depend only on the iteration, so a resumed run needs no state.

    Args:
        optimizer: the initial rates of its groups are the peaks.
        warmup_epochs: the network's rate rises over the first of these epochs (at least 10 steps).
            The template's rate is 0 during all of them, because a template that follows an
            untrained registration stays blurred.
        final_share: of the peak, at the end.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, warmup_epochs: int = 2, final_share: float = 0.01
    ) -> None:
        self.optimizer = optimizer
        self.warmup_epochs = warmup_epochs
        self.final_share = final_share
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        """Set the rates before each iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the rates of the next iteration."""
        length, epochs = engine.state.epoch_length or 1, engine.state.max_epochs or 1
        step, total = engine.state.iteration - 1, length * epochs
        rise = (step + 1) / max(10, length) if self.warmup_epochs else 1.0
        share = rate_share(step / total, rise, self.final_share)
        waiting = step < self.warmup_epochs * length and self.warmup_epochs < epochs
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            held = waiting and group.get("name") == "template"
            group["lr"] = 0.0 if held else peak * share
