"""Saves the training after each epoch, and continues from there."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.data import EpochBatches
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError
from scripts.networks.checkpoint import load_latest, load_weights, save_checkpoint
from scripts.runtime.processes import from_first, is_first
from scripts.runtime.storage import check_space

__all__ = ["TrainingCheckpoint"]

logger = logging.getLogger(__name__)

FORMAT = 1


class TrainingCheckpoint:
    """Saves template, network, optimizer, random state and history after epochs.

    The checkpoint before the last one stays beside it: if the last one is damaged, the training
    goes on from there.

    Learning rates and the order of the subjects follow from the iteration and need no state. On a
    CPU a resumed run is bit-identical to an uninterrupted one. With several processes, which all
    have the same state, the first one writes and all read.

    Args:
        state: of the run.
        network: its state is saved.
        optimizer: its moments are saved.
        batches: the shuffling sampler; it gets the first epoch.
        history: of the losses.
        interval: epochs between checkpoints.
    """

    def __init__(
        self,
        state: RunState,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: EpochBatches,
        history: LossHistory,
        interval: int = 1,
    ) -> None:
        self.state = state
        # Without the wrapper for several processes.
        self.network = getattr(network, "module", network)
        self.optimizer = optimizer
        self.batches = batches
        self.history = history
        self.interval = interval
        self.stopped = False

    def attach(self, engine: Engine) -> None:
        """Load at the start, save after epochs and at the end."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Continue after the last saved epoch, if there is one."""
        from_first(self._check_space)
        checkpoint = from_first(self._read)
        if checkpoint is None:
            return
        path = self.state.training
        if checkpoint.get("format", FORMAT) != FORMAT:
            raise CheckpointError(
                f"{path}: written in format {checkpoint['format']!r}, this version reads {FORMAT}; "
                f"discard the unfinished run with --{self.state.block}#resume false"
            )
        load_weights(self.network, checkpoint, path)
        try:
            self._take_over(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: not a complete checkpoint of a training ({error}); discard the "
                f"unfinished run with --{self.state.block}#resume false"
            ) from error
        engine.state.epoch = self.batches.first_epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * (engine.state.epoch_length or 1)
        self.stopped = checkpoint["stopped"]
        if self.stopped:  # stopped early at that epoch: nothing is left to do
            engine.state.max_epochs = checkpoint["epoch"]
        logger.info("training continues after epoch %d", checkpoint["epoch"])

    def _take_over(self, checkpoint: dict[str, Any]) -> None:
        """The state without the network."""
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.history.epochs = [dict(epoch) for epoch in checkpoint["history"]]
        torch.set_rng_state(checkpoint["rng"])
        if torch.cuda.is_available() and checkpoint["cuda_rng"]:
            devices = torch.cuda.device_count()  # may be fewer than when it was saved
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng"][:devices])

    def _check_space(self) -> None:
        """Before the first step: three times the weights (with Adam's two moments), in two files
        and in the one being written, and the model. The space that depends on the cohort's size was
        checked before.
        """
        weights = sum(torch.as_tensor(one).nbytes for one in self.network.state_dict().values())
        begun_before = self.state.training.exists()
        check_space({self.state.folder: {"checkpoints": weights * (7 if begun_before else 10)}})

    def _read(self) -> dict[str, Any] | None:
        return load_latest(self.state.training)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint."""
        self.stopped = self.stopped or bool(engine.should_terminate)
        if not is_first():
            return
        save_checkpoint(
            {
                "format": FORMAT,
                "epoch": engine.state.epoch,
                "stopped": self.stopped,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "history": self.history.epochs,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            self.state.training,
            keep_previous=True,
        )
