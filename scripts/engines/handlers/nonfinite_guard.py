"""Stops a run whose loss is no longer a number."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.errors import TrainingError

__all__ = ["NonFiniteGuard"]

_ADVICE = (
    "the last checkpoint is kept; lower {block}#optimizer#lr or the loss weights, or use "
    "dtype float32, and start afresh with --{block}#resume false"
)


class NonFiniteGuard:
    """Raises on a non-finite loss, before its gradient reaches any parameter.

    (Ignite's ``TerminateOnNan`` ends the run with exit status 0, as if all were well.) A finite
    loss may still have a gradient that isn't: an epoch's network is looked at before it is saved.
    So the last checkpoint is a good one; it stays as it is. To be listed before the checkpoint.

    Args:
        block: of the settings, for the advice.
    """

    def __init__(self, block: str = "learned_atlas") -> None:
        self.advice = _ADVICE.format(block=block)

    def attach(self, engine: Engine) -> None:
        """Look at each loss as soon as it is known, at the network after each epoch."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_network)

    def __call__(self, engine: Engine) -> None:
        """Check the last loss.

        Raises:
            TrainingError: naming epoch, iteration, subjects and the terms at fault.
        """
        output: Any = engine.state.output
        if bool(torch.isfinite(output["loss"])):
            return
        terms = ", ".join(
            f"{name} {float(value):g}"
            for name, value in output.items()
            if isinstance(value, torch.Tensor) and value.dim() == 0
        )
        raise TrainingError(
            f"loss is not finite in epoch {engine.state.epoch}, iteration "
            f"{engine.state.iteration}, subjects {', '.join(output['subject'])} ({terms}); "
            f"{self.advice}"
        )

    def check_network(self, engine: Any) -> None:
        """Check every parameter of a MONAI trainer's network.

        Raises:
            TrainingError: naming epoch, iteration, subjects and a parameter at fault.
        """
        for name, parameter in engine.network.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                subjects = ", ".join(one["subject"] for one in engine.state.output)
                raise TrainingError(
                    f"parameter {name} is not finite after epoch {engine.state.epoch}, iteration "
                    f"{engine.state.iteration}, subjects {subjects}; {self.advice}"
                )
