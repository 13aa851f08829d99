"""Measures a trained network for pairs on held-out subjects."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from scripts.pairwise.label_overlap import LabelOverlap

__all__ = ["HeldOutErrors", "Measurement"]

logger = logging.getLogger(__name__)


class HeldOutErrors:
    """Means and 90th percentiles of the evaluator's errors, in ``engine.state.metrics``."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        """Collect after each iteration, summarise after each run."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._sum_up)

    def _begin(self, engine: Engine) -> None:
        self._found = {}

    def _gather(self, engine: Engine) -> None:
        subjects: Any = engine.state.output
        for item in subjects:
            for name, value in item.items():
                if name not in ("image", "subject"):
                    self._found.setdefault(name, []).append(float(value))

    def _sum_up(self, engine: Engine) -> None:
        for name, values in self._found.items():
            engine.state.metrics[name] = float(np.mean(values))
            if name == "distance":
                engine.state.metrics["distance_90"] = float(np.quantile(values, 0.9))
        engine.state.metrics["pairs"] = float(max(map(len, self._found.values()), default=0))


class Measurement:
    """Measures on the held-out subjects every few epochs, and logs the result.

    Args:
        evaluator: runs over pairs of held-out subjects.
        held_out: number of held-out subjects; with none, nothing is measured.
        interval: epochs between measurements.
        labels: measures the labels of real images besides.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        held_out: int,
        interval: int = 10,
        labels: LabelOverlap | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.held_out = held_out
        self.interval = interval
        self.labels = labels

    def attach(self, engine: Engine) -> None:
        """Measure after every ``interval`` epochs."""
        if self.held_out:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Measure, and log the means."""
        metrics = self.measured()
        logger.info("epoch %d, held out: %s", engine.state.epoch, error_texts(metrics))

    def measured(self) -> dict[str, float]:
        """Errors on the pairs of held-out subjects; empty without any."""
        if not self.held_out:
            return {}
        self.evaluator.run()
        values = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        return values if self.labels is None else {**values, **self.labels.measured()}


def error_texts(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
