"""Training of the networks of fields: the loss, the trainer's and the evaluator's step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from scripts.engines.descent import descend
from scripts.errors import CohortError
from scripts.losses.fields import MixedLoss, field_loss
from scripts.losses.images import image_loss
from scripts.losses.perceptual import load_perceptual_loss
from scripts.networks.precision import autocast
from scripts.networks.unwrapping import unwrapped
from scripts.settings.field_losses import mixture_of
from scripts.settings.train_fields import TrainFieldsConfig
from scripts.supervised.field_metrics import pair_metrics
from scripts.supervised.field_network import FieldNetwork
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.layers import CentredAffine
from scripts.supervised.merging import global_stage, what_is_left

__all__ = ["FieldLoss", "FieldStep", "HeldOutFields", "PairTask", "field_losses", "task_of"]

logger = logging.getLogger(__name__)

_LEAST_SIZE = {"ssim": 11, "perceptual": 32}  # pixels along each axis


def field_losses(settings: TrainFieldsConfig, shape: Sequence[int] | None = None) -> FieldLoss:
    """The losses that the settings name, with the weights of perceptual ones.

    To be made before any data is read: a weights file that is missing ends the run at once.

    Args:
        settings: of the run.
        shape: of the images; None: not known yet.

    Raises:
        ConfigurationError: a perceptual loss has no weights file.
        CheckpointError: the weights file can't be used.
        CohortError: the images are too small for a loss.
    """
    dims = 2 if shape is None else len(shape)
    extent = float(max(shape)) if shape is not None else 1.0
    perceptual: dict[str, nn.Module] = {}
    losses: list[nn.Module] = []
    for number, text in enumerate(settings.loss_names()):
        parts: list[tuple[float, nn.Module]] = []
        for weight, name in mixture_of(text, field=number > 0):
            for start, least in _LEAST_SIZE.items():
                if shape is not None and name.startswith(start) and min(shape) < least:
                    raise CohortError(
                        f"{settings.key('losses')}: {name} needs images of at least {least} pixels "
                        f"along each axis, these have {' x '.join(map(str, shape))}"
                    )
            if name.startswith("perceptual_loss_") and name not in perceptual:
                perceptual[name] = load_perceptual_loss(
                    name, settings.perceptual_weights, settings.key("perceptual_weights")
                )
            features = perceptual.get(name)
            if number == 0:
                parts.append((weight, image_loss(name, dims, 1.0, features)))
            else:
                parts.append((weight, field_loss(name, dims, extent, features)))
        losses.append(parts[0][1] if parts[0][0] == 1 and len(parts) == 1 else MixedLoss(parts))
    return FieldLoss(losses, settings.loss_weights())


class FieldLoss(nn.Module):
    """Weighted sum of a loss for each output: image, field, inverse field.

    Args:
        losses: two or three.
        weights: of each.
    """

    NAMES = ("image", "field", "inverse")

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights)

    @property
    def inverse(self) -> bool:
        """Whether there is a loss of the inverse field."""
        return len(self.losses) == 3

    def forward(
        self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """``loss``, and each output's as ``<output>_loss``, in float32."""
        terms: dict[str, torch.Tensor] = {}
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for name, loss, weight, output, target in zip(
            self.NAMES, self.losses, self.weights, outputs, targets, strict=False
        ):
            if weight == 0:
                continue
            terms[f"{name}_loss"] = loss(output.float(), target.float())
            total = total + weight * terms[f"{name}_loss"]
        return {"loss": total, **terms}


@dataclass(frozen=True, eq=False)
class PairTask:
    """A batch with its targets.

    Attributes:
        pair: the network's input ``(B, 2, *shape)``.
        moving: without augmentation ``(B, 1, *shape)``.
        registered: what that should become.
        field: true displacement of ``pair``; None without fields.
        inverse: true displacement back, or None.
        stage: affine that ``pair``'s moving image was moved by; None: it was not moved.
    """

    pair: torch.Tensor
    moving: torch.Tensor
    registered: torch.Tensor
    field: torch.Tensor
    inverse: torch.Tensor | None
    stage: CentredAffine | None

    def whole(self, field: torch.Tensor) -> torch.Tensor:
        """A field of ``pair`` as a displacement of the original moving image."""
        return field if self.stage is None else self.stage.after(field)


def task_of(
    batch: dict[str, Any], device: torch.device | str, stage: GlobalNetwork | None, dtype: str
) -> PairTask:
    """A batch on its device; with a global stage, the remaining displacement."""
    tensors = {
        name: torch.as_tensor(batch[name]).to(device)
        for name in ("pair", "moving", "registered", "field", "inverse")
        if name in batch
    }
    pair, field, inverse = tensors["pair"], tensors["field"], tensors.get("inverse")
    affine: CentredAffine | None = None
    if stage is not None:
        with torch.no_grad(), autocast(pair.device, dtype):
            affine = stage.affine(pair)
        pair = global_stage(pair, affine)
        field, inverse = what_is_left(affine, field, inverse)
    return PairTask(pair, tensors["moving"], tensors["registered"], field, inverse, affine)


class FieldStep:
    """The trainer's ``iteration_update``: forward, warp, loss, backward, step.

    Convolutions run in ``dtype``; fields, warps and losses are float32.

    Args:
        loss: of image and fields.
        dtype: of the convolutions.
        gradient_clip: greatest norm of a gradient.
        stage: a global network whose images a local one learns on; None: the original pairs.
    """

    def __init__(
        self,
        loss: FieldLoss,
        dtype: str = "float32",
        gradient_clip: float = 5.0,
        stage: GlobalNetwork | None = None,
    ) -> None:
        self.loss = loss
        self.dtype = dtype
        self.gradient_clip = gradient_clip
        self.stage = stage

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration; ``loss``, its terms and ``distance`` (pixels) are scalars."""
        assert engine.network is not None and engine.optimizer is not None
        network: Any = unwrapped(engine.network, FieldNetwork)
        task = task_of(batch, engine.state.device, self.stage, self.dtype)
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(task.pair.device, self.dtype):
            estimate = network.find(task.pair, inverse=self.loss.inverse)
        engine.state.output = {"image": task.pair, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        outputs = [network.warp(task.moving, task.whole(estimate.field)), estimate.field]
        targets = [task.registered, task.field]
        if self.loss.inverse:
            assert estimate.inverse is not None and task.inverse is not None
            outputs.append(estimate.inverse)
            targets.append(task.inverse)
        terms = self.loss(outputs, targets)
        with torch.no_grad():
            distance = (estimate.field - task.field).square().sum(1).sqrt().mean()
        engine.state.output.update({name: term.detach() for name, term in terms.items()})
        engine.state.output["distance"] = distance
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        descend(engine, terms["loss"], network.parameters(), self.gradient_clip, "train_fields")
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class HeldOutFields:
    """The evaluator's ``iteration_update``: `pair_metrics` of every pair.

    Args:
        dtype: of the convolutions.
        stage: as of `FieldStep`; errors are then of the whole displacement all the same.
    """

    def __init__(self, dtype: str = "float32", stage: GlobalNetwork | None = None) -> None:
        self.dtype = dtype
        self.stage = stage

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """The numbers of every pair, with the network and (``..._zero``) with no field."""
        assert engine.network is not None
        network: Any = unwrapped(engine.network, FieldNetwork)
        task = task_of(batch, engine.state.device, self.stage, self.dtype)
        network.eval()
        with torch.no_grad(), autocast(task.pair.device, self.dtype):
            estimate = network.find(task.pair, inverse=True)
        back = estimate.inverse
        assert back is not None
        if task.stage is not None:
            back = task.stage.inverse().before(back)
        fields = task.whole(estimate.field).cpu(), back.cpu()
        rows = []
        for i in range(len(task.pair)):
            reference, moving, true = (
                np.asarray(batch[name][i]) for name in ("reference", "moving", "field")
            )
            found_there, found_back = (one[i].numpy() for one in fields)
            rows.append(pair_metrics(found_there, found_back, reference, moving, true))
        names = [name for name in rows[0] if all(name in row for row in rows)]
        numbers = {name: torch.tensor([row[name] for row in rows]) for name in names}
        engine.state.output = {"image": task.pair, "subject": batch["subject"], **numbers}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # cuts the batch into pairs
        return engine.state.output
