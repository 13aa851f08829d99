"""Components that the configs of the affine networks name."""

from __future__ import annotations

from monai.transforms import Compose

from scripts.affine.pairs import SyntheticPairs
from scripts.affine.training import AffineLoss
from scripts.pairwise.images import OntoNetworkGridd, PairImages
from scripts.settings.affine import LearnedAffineConfig

__all__ = ["affine_loss", "affine_transforms", "synthetic_pairs"]


def affine_transforms(images: PairImages, settings: LearnedAffineConfig) -> Compose:
    """Transforms from a subject's files to its image on the network's grid."""
    return Compose([OntoNetworkGridd("image", images.grid, settings.images.log_share)])


def synthetic_pairs(images: PairImages, settings: LearnedAffineConfig) -> SyntheticPairs:
    """The pairs, made according to the settings."""
    return SyntheticPairs(images.grid, settings.family, settings.pairs, settings.optimizer.seed)


def affine_loss(settings: LearnedAffineConfig) -> AffineLoss:
    """The loss, with the weights of the settings."""
    return AffineLoss(settings.loss.parameter_weight, settings.loss.image_weight)
