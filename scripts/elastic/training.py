"""Training of the elastic network: the loss, and the steps of trainer and evaluator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.transforms import Compose

from scripts.elastic.network import ElasticNetwork
from scripts.elastic.synthesis import LabelMapsd, SyntheticPair, SyntheticPairsOfLabels
from scripts.losses.smoothness import SmoothnessLoss
from scripts.pairwise.images import PairImages
from scripts.pairwise.training import HeldOutPairs, PairStep
from scripts.settings.elastic import LearnedElasticConfig
from scripts.spatial.warp import warp

__all__ = [
    "ElasticLoss",
    "ElasticStep",
    "HeldOutOverlap",
    "elastic_loss",
    "label_transforms",
    "soft_overlap",
    "synthetic_pairs_of_labels",
]


def soft_overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Soft Dice ``2 sum p q / sum (p^2 + q^2)`` of label maps, one number per pair.

    The mean over the labels that either contains; 1 if neither contains any.

    Args:
        first: ``(B, L, *shape)`` from 0 to 1.
        second: the same shape.
    """
    p, q = first.flatten(2), second.flatten(2)
    total = p.square().sum(2) + q.square().sum(2)
    held = total > 1e-3
    dice = 2 * (p * q).sum(2) / torch.where(held, total, 1.0)
    count = held.sum(1)
    mean = (dice * held).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, 1.0)


class ElasticLoss(torch.nn.Module):
    """``overlap_weight * (1 - soft Dice of the labels) + smoothness_weight * roughness``.

    The loss compares warped labels, never images, so it doesn't depend on contrast.

    Args:
        factor: of the field's resolution.
        spatial_dims: 2 or 3.
        overlap_weight: of the first term.
        smoothness_weight: of the second term.
    """

    def __init__(
        self,
        factor: int = 2,
        spatial_dims: int = 3,
        overlap_weight: float = 1.0,
        smoothness_weight: float = 0.3,
    ) -> None:
        super().__init__()
        self.overlap_weight = overlap_weight
        self.smoothness_weight = smoothness_weight
        self.smoothness = SmoothnessLoss([1.0] * spatial_dims, factor)

    def forward(
        self, network: ElasticNetwork, velocity: torch.Tensor, made: SyntheticPair
    ) -> dict[str, torch.Tensor]:
        """``loss`` and its terms."""
        warped = warp(made.moving, network.displacement(velocity))
        overlap = 1 - soft_overlap(warped, made.fixed).mean()
        rough = self.smoothness(velocity)
        total = self.overlap_weight * overlap + self.smoothness_weight * rough
        return {"loss": total, "overlap": overlap, "smoothness": rough}


class ElasticStep(PairStep[ElasticNetwork, SyntheticPair]):
    """One iteration of an elastic network's training; the images are made from label maps."""

    kind = ElasticNetwork
    block = "learned_elastic"

    def find(self, network: ElasticNetwork, made: SyntheticPair) -> torch.Tensor:
        """Velocities ``(B, d, *reduced)``."""
        return network.velocity(made.pair)


class HeldOutOverlap(HeldOutPairs[ElasticNetwork, SyntheticPair]):
    """Overlap of the labels of held-out subjects, before and after."""

    kind = ElasticNetwork

    def errors(
        self, network: ElasticNetwork, field: torch.Tensor, made: SyntheticPair
    ) -> dict[str, torch.Tensor]:
        """``overlap`` and ``overlap_before`` of every pair."""
        return {
            "overlap": soft_overlap(warp(made.moving, field), made.fixed),
            "overlap_before": soft_overlap(made.moving, made.fixed),
        }


# ---------------------------------------------------------------------------------------------
# Components that the config names
# ---------------------------------------------------------------------------------------------


def label_transforms(
    images: PairImages, settings: LearnedElasticConfig, labels: Sequence[int]
) -> Compose:
    """Transforms from a subject's files to its label maps on the network's grid."""
    return Compose([LabelMapsd("image", images.grid, labels, settings.images.levels)])


def synthetic_pairs_of_labels(
    images: PairImages, settings: LearnedElasticConfig
) -> SyntheticPairsOfLabels:
    """The pairs, made according to the settings."""
    return SyntheticPairsOfLabels(images.grid.shape, settings.synthesis, settings.optimizer.seed)


def elastic_loss(images: PairImages, settings: LearnedElasticConfig) -> ElasticLoss:
    """The loss, with the weights of the settings."""
    return ElasticLoss(
        settings.model.field_resolution,
        len(images.grid.shape),
        settings.loss.overlap_weight,
        settings.loss.smoothness_weight,
    )
