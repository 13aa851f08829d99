"""Ends training when the loss has stopped falling."""

from __future__ import annotations

from ignite.engine import Engine, Events

from scripts.engines.handlers.loss_history import LossHistory

__all__ = ["EarlyStop"]


class EarlyStop:
    """Stop when the epoch's mean loss hasn't improved for ``patience`` epochs; 0: never.

    It uses only the recorded history, so that a resumed run decides like an uninterrupted one.

    Args:
        history: records the epochs' losses; must be attached before this handler.
        patience: epochs without improvement.
        tolerance: smallest relative change that counts as improvement.
    """

    def __init__(self, history: LossHistory, patience: int = 0, tolerance: float = 1e-4) -> None:
        self.history = history
        self.patience = patience
        self.tolerance = tolerance

    def attach(self, engine: Engine) -> None:
        """Check after each epoch."""
        if self.patience:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Terminate the engine if the best epoch was ``patience`` epochs ago."""
        best, best_epoch = float("inf"), 0
        for number, epoch in enumerate(self.history.epochs, start=1):
            if epoch["loss"] < best - abs(best) * self.tolerance or best == float("inf"):
                best, best_epoch = epoch["loss"], number
        if len(self.history.epochs) - best_epoch >= self.patience:
            engine.terminate()
