"""Stops a run whose loss isn't finite."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.errors import TrainingError
from scripts.runtime.processes import everyones, is_first, stop_together

__all__ = ["NonFiniteGuard"]

_ADVICE = (
    "the last checkpoint is kept; lower {block}optimizer#lr or the loss weights, or use "
    "dtype float32, and start again with {block}resume false"
)


class NonFiniteGuard:
    """Raises on a non-finite loss, before its gradient changes any parameter.

    (Ignite's ``TerminateOnNan`` ends the run with exit status 0, as if it had succeeded.) A finite
    loss may still have a non-finite gradient, so the network is checked after each epoch before it
    is saved. The last checkpoint is therefore always good. List this handler before the checkpoint.
    With several processes, an error in one stops all, and only the first one reports it.

    Args:
        block: name of the block of settings (``learned_affine``), for the advice.
    """

    def __init__(self, block: str = "") -> None:
        self.advice = _ADVICE.format(block=f"--{block}#" if block else "")

    def attach(self, engine: Engine) -> None:
        """Check each loss once it is known, and the network after each epoch."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_network)

    def __call__(self, engine: Engine) -> None:
        """Check the last loss.

        Raises:
            TrainingError: the message names epoch, iteration, subjects and the non-finite terms.
        """
        output: Any = engine.state.output
        if bool(torch.isfinite(output["loss"])):
            return
        terms = ", ".join(
            f"{name} {float(value):g}"
            for name, value in output.items()
            if isinstance(value, torch.Tensor) and value.dim() == 0
        )
        # The loss is summed over all processes, so each of them comes here.
        batches = everyones(list(output["subject"]))
        subjects = dict.fromkeys(subject for batch in batches for subject in batch)
        error = TrainingError(
            f"loss is not finite in epoch {engine.state.epoch}, iteration "
            f"{engine.state.iteration}, subjects {', '.join(subjects)} ({terms}); "
            f"{self.advice}"
        )
        stop_together(error if is_first() else None)

    def check_network(self, engine: Any) -> None:
        """Check every parameter of a MONAI trainer's network.

        Raises:
            TrainingError: the message names epoch, iteration, subjects and a non-finite parameter.
        """
        error = None
        network = getattr(engine.network, "module", engine.network)
        for name, parameter in network.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                subjects = ", ".join(one["subject"] for one in engine.state.output)
                error = TrainingError(
                    f"parameter {name} is not finite after epoch {engine.state.epoch}, iteration "
                    f"{engine.state.iteration}, subjects {subjects}; {self.advice}"
                )
                break
        stop_together(error)
