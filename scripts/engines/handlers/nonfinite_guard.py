"""Stops a run whose loss is no longer a number."""

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
    "dtype float32, and start afresh with {block}resume false"
)


class NonFiniteGuard:
    """Raises on a non-finite loss, before its gradient reaches any parameter.

    (Ignite's ``TerminateOnNan`` ends the run with exit status 0, as if all were well.) A finite
    loss may still have a gradient that isn't: an epoch's network is looked at before it is saved.
    So the last checkpoint is a good one; it stays as it is. To be listed before the checkpoint.
    Over several processes one's fault stops all, and the first of them tells.

    Args:
        block: of the run's settings (``learned_affine``), for the advice.
    """

    def __init__(self, block: str = "") -> None:
        self.advice = _ADVICE.format(block=f"--{block}#" if block else "")

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
        # The loss is that of all processes: each of them comes here.
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
            TrainingError: naming epoch, iteration, subjects and a parameter at fault.
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
