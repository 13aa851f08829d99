"""One optimisation step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from scripts.errors import TrainingError

__all__ = ["descend"]


def descend(
    engine: SupervisedTrainer,
    loss: torch.Tensor,
    clipped: Iterable[nn.Parameter],
    gradient_clip: float,
    block: str,
) -> None:
    """Run backward and a step of the optimizer, through the scaler if there is one.

    Args:
        engine: has optimizer and scaler; fires BACKWARD_COMPLETED in between.
        loss: a scalar.
        clipped: parameters whose gradient is clipped.
        gradient_clip: largest norm of the gradient.
        block: name of the block of settings, for messages.

    Raises:
        TrainingError: the step overflows float32.
    """
    assert engine.optimizer is not None
    scaler = engine.scaler
    (scaler.scale(loss) if scaler else loss).backward()
    if scaler:
        scaler.unscale_(engine.optimizer)
    torch.nn.utils.clip_grad_norm_(clipped, gradient_clip)
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    try:
        if scaler:
            scaler.step(engine.optimizer)
            scaler.update()
        else:
            engine.optimizer.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise TrainingError(
            f"the optimizer's step overflows float32 in epoch {engine.state.epoch}, iteration "
            f"{engine.state.iteration}; lower {block}#optimizer#lr and start again with "
            f"--{block}#resume false"
        ) from error
