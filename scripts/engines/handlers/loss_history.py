"""Records every loss term: in memory, in TensorBoard, in the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.errors import StorageError
from scripts.runtime.processes import is_first

__all__ = ["LossHistory", "scalar_terms"]

logger = logging.getLogger(__name__)


class LossHistory:
    """Mean of each term over each epoch.

    Args:
        summary_dir: TensorBoard's folder, written by the first process; None: no TensorBoard.
    """

    def __init__(self, summary_dir: str | Path | None = None) -> None:
        self.summary_dir = summary_dir
        self.epochs: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._writer: Any = None  # of TensorBoard, imported when needed

    def attach(self, engine: Engine) -> None:
        """Collect after each iteration, record after each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _begin(self, engine: Engine) -> None:
        self._sums = {}

    def _gather(self, engine: Engine) -> None:
        for name, value in scalar_terms(engine).items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _record(self, engine: Engine) -> None:
        length = engine.state.epoch_length or 1
        epoch = {name: total / length for name, total in self._sums.items()}
        self.epochs.append(epoch)
        text = ", ".join(f"{name} {value:.4f}" for name, value in epoch.items())
        logger.debug("epoch %d: %s", engine.state.epoch, text)
        if self.summary_dir is not None and is_first():
            try:
                if self._writer is None:
                    from torch.utils.tensorboard import SummaryWriter

                    self._writer = SummaryWriter(str(self.summary_dir))
                for name, value in epoch.items():
                    self._writer.add_scalar(f"train/{name}", value, engine.state.epoch)
            except OSError as error:
                raise StorageError(f"{self.summary_dir}: can't be written: {error}") from error

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalar_terms(engine: Engine) -> dict[str, float]:
    """The scalar loss terms of the engine's last output.

    When an iteration is completed, MONAI has already split its output into subjects and turned its
    scalar tensors into plain numbers.
    """
    output: Any = engine.state.output
    first = output[0] if isinstance(output, list) else output
    return {
        name: float(value)
        for name, value in first.items()
        if isinstance(value, float) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    }
