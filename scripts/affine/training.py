"""Training of affine networks: the loss, the trainer's and the evaluator's step, the report."""

from __future__ import annotations

import logging
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents

from scripts.affine.network import AffineNetwork, CascadePass
from scripts.affine.pairs import Pairs, SyntheticPairs
from scripts.engines.descent import descend
from scripts.metrics.matrices import matrix_errors
from scripts.networks.precision import autocast
from scripts.networks.wrapping import unwrapped

__all__ = ["AffineLoss", "AffineStep", "HeldOutStep"]

logger = logging.getLogger(__name__)

_TRAINING, _HELD_OUT = 0, 1  # first number of a pair's key: the two never share a pair


class AffineLoss(torch.nn.Module):
    """Squared error of what each pass of a cascade found, and of the images it aligns.

    A pass is judged by the step that was left for it. With parameters: the mean over pairs of the
    squared differences, summed over parameters (radians, half widths, deviations from 1). Without
    (keypoints): the same over the entries of the composed matrix, lengths in half widths. The
    image term is the mean squared difference of the images without augmentation.

    Args:
        parameter_weight: of the first.
        image_weight: of the second; 0 leaves it out.
    """

    def __init__(self, parameter_weight: float = 1.0, image_weight: float = 0.0) -> None:
        super().__init__()
        self.parameter_weight = parameter_weight
        self.image_weight = image_weight

    def forward(
        self, network: AffineNetwork, passes: list[CascadePass], pairs: Pairs
    ) -> dict[str, torch.Tensor]:
        """``loss`` and its terms, means over the passes."""
        parameter = torch.stack([self._of_pass(network, one, pairs) for one in passes]).mean()
        terms = {"parameters": parameter.float()}
        total = self.parameter_weight * parameter
        if self.image_weight > 0:
            fixed, moving = pairs.clean[:, :1], pairs.clean[:, 1:]
            image = torch.stack(
                [(network.moved(moving, one.matrix) - fixed).square().mean() for one in passes]
            ).mean()
            terms["image"] = image
            total = total + self.image_weight * image
        return {"loss": total.float(), **terms}

    def _of_pass(self, network: AffineNetwork, one: CascadePass, pairs: Pairs) -> torch.Tensor:
        if one.parameters is not None:
            with torch.no_grad():
                if one.before.allclose(torch.eye(4).to(one.before), rtol=0, atol=0):
                    wanted = pairs.parameters
                else:
                    wanted = network.residual_parameters(pairs.matrix, one.before)
            return (one.parameters - wanted).square().sum(1).mean()
        d = network.frame.spatial_dims
        half = network.frame.half_width.to(one.matrix.device)
        apart = (one.matrix - pairs.matrix)[:, :d]
        linear = apart[:, :, :d].square().sum((1, 2))
        return (linear + (apart[:, :, 3] / half).square().sum(1)).mean()


class AffineStep:
    """The trainer's ``iteration_update``: images to pairs, forward, loss, backward, step.

    Args:
        pairs: makes them; depends on the iteration alone, so that a resumed run sees the pairs of
            an unbroken one.
        loss: of the cascade.
        dtype: of the convolutions.
        gradient_clip: greatest norm of a gradient.
    """

    def __init__(
        self,
        pairs: SyntheticPairs,
        loss: AffineLoss,
        dtype: str = "float32",
        gradient_clip: float = 1.0,
    ) -> None:
        self.pairs = pairs
        self.loss = loss
        self.dtype = dtype
        self.gradient_clip = gradient_clip

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration; ``loss``, its terms and ``distance`` (mm) are scalars."""
        assert engine.network is not None and engine.optimizer is not None
        network = unwrapped(engine.network, AffineNetwork)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_TRAINING, engine.state.iteration))
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(image.device, self.dtype):
            passes = network.cascade(made.pair)
        engine.state.output = {"image": image, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss(network, passes, made)
        half_width = network.frame.half_width.to(image.device)
        far = matrix_errors(passes[-1].matrix.detach(), made.matrix, half_width)["distance"]
        engine.state.output.update({name: term.detach() for name, term in terms.items()})
        engine.state.output["distance"] = far.mean().float()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        descend(engine, terms["loss"], network.parameters(), self.gradient_clip, "learned_affine")
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class HeldOutStep:
    """The evaluator's ``iteration_update``: fixed pairs of held-out subjects, estimated.

    Args:
        pairs: makes them; the same ones at every call of the evaluator, in every run of equal
            seed and ranges.
    """

    def __init__(self, pairs: SyntheticPairs) -> None:
        self.pairs = pairs

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """Errors of every pair, see `matrix_errors`, with and without the network."""
        assert engine.network is not None
        network = unwrapped(engine.network, AffineNetwork)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_HELD_OUT, engine.state.iteration))
        network.eval()
        with torch.no_grad():
            found = engine.inferer(made.pair, network)
        half_width = network.frame.half_width.to(image.device)
        before = matrix_errors(torch.eye(4).to(found).expand_as(found), made.matrix, half_width)
        errors = matrix_errors(found, made.matrix, half_width)
        errors.update({f"{name}_before": value for name, value in before.items()})
        engine.state.output = {"image": image, "subject": batch["subject"], **errors}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # cuts the batch into subjects
        return engine.state.output
