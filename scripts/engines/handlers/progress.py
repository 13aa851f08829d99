"""The progress bar of training."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm

from scripts.engines.handlers.loss_history import scalar_terms
from scripts.runtime.progress import progress_bar

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """Epoch, loss terms and time left."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Draw after each iteration."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _epoch(self, engine: Engine) -> None:
        if self._bar is None:
            total = (engine.state.epoch_length or 1) * (engine.state.max_epochs or 1)
            self._bar = progress_bar(total, "training", initial=engine.state.iteration)
        self._bar.set_description(
            f"training, epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False
        )

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            terms = {name: f"{value:.3f}" for name, value in scalar_terms(engine).items()}
            self._bar.set_postfix(terms, refresh=False)
            self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error
