"""Training of affine networks: the loss, and the steps of trainer and evaluator."""

from __future__ import annotations

import torch

from scripts.affine.network import AffineNetwork, CascadePass
from scripts.affine.pairs import Pairs
from scripts.metrics.matrices import matrix_errors
from scripts.pairwise.training import HeldOutPairs, PairStep

__all__ = ["AffineLoss", "AffineStep", "HeldOutStep"]


class AffineLoss(torch.nn.Module):
    """Squared error of the estimate of each pass of a cascade, and of the aligned images.

    Each pass is compared with the step that it should have estimated. With parameters: the mean
    over pairs of the squared differences, summed over parameters (radians, half widths, deviations
    from 1). Without parameters (keypoints): the same over the entries of the composed matrix,
    lengths in half widths. The image term is the mean squared difference of the images without
    augmentation.

    Args:
        parameter_weight: of the parameter term.
        image_weight: of the image term; 0 omits it.
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


class AffineStep(PairStep[AffineNetwork, Pairs]):
    """One iteration of the training of an affine network; also reports ``distance`` (mm)."""

    kind = AffineNetwork
    block = "learned_affine"

    def find(self, network: AffineNetwork, made: Pairs) -> list[CascadePass]:
        """The results of all passes of the cascade."""
        return network.cascade(made.pair)

    def measure(
        self, network: AffineNetwork, passes: list[CascadePass], made: Pairs
    ) -> dict[str, torch.Tensor]:
        """Mean ``distance`` of the matrices of the last pass, see `matrix_errors`."""
        half_width = network.frame.half_width.to(made.pair.device)
        far = matrix_errors(passes[-1].matrix.detach(), made.matrix, half_width)["distance"]
        return {"distance": far.mean().float()}


class HeldOutStep(HeldOutPairs[AffineNetwork, Pairs]):
    """Errors of all held-out pairs, with and without the network."""

    kind = AffineNetwork

    def errors(
        self, network: AffineNetwork, estimate: torch.Tensor, made: Pairs
    ) -> dict[str, torch.Tensor]:
        """`matrix_errors`, and those of the identity as ``..._before``."""
        half_width = network.frame.half_width.to(estimate.device)
        before = matrix_errors(
            torch.eye(4).to(estimate).expand_as(estimate), made.matrix, half_width
        )
        errors = matrix_errors(estimate, made.matrix, half_width)
        errors.update({f"{name}_before": value for name, value in before.items()})
        return errors
