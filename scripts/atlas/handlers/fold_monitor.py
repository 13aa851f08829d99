"""Checks the fields for folds during the training."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.atlas.training_step import bare
from scripts.runtime.processes import everyones, is_first
from scripts.spatial.jacobian import jacobian_summary

__all__ = ["FoldMonitor"]

logger = logging.getLogger(__name__)


class FoldMonitor:
    """Every few epochs: the smallest Jacobian determinant of the last batch's first field.

    With several processes: of the first field of each.

    Args:
        network: the atlas network.
        interval: epochs between checks; 0: never.
    """

    def __init__(self, network: torch.nn.Module, interval: int = 10) -> None:
        self.network = bare(network)
        self.interval = interval
        self.smallest: list[tuple[int, float]] = []

    def attach(self, engine: Engine) -> None:
        """Check every ``interval`` epochs."""
        if self.interval:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Warn about a fold in the last subject, with its name."""
        output: Any = engine.state.output  # decollated: a list of subjects
        velocity = output[0]["velocity"][:1]
        local = jacobian_summary(self.network.displacement(velocity)[0])
        summaries = everyones((local, output[0]["subject"]))
        self.smallest.append((engine.state.epoch, min(one["min"] for one, _ in summaries)))
        summary, subject = min(summaries, key=lambda one: one[0]["corner_min"])
        if summary["corner_min"] <= 0 and is_first():
            logger.warning(
                "epoch %d: the field of subject %s folds (det J %.3g, %.2g %% of cells): "
                "raise learned_atlas#loss#smoothness_weight",
                engine.state.epoch,
                subject,
                summary["corner_min"],
                100 * summary["corner_share_folded"],
            )
