"""What the affine networks' configs name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.transforms import Compose

from scripts.affine.pairs import SyntheticPairs
from scripts.affine.training import AffineLoss
from scripts.engines.opening import reserved
from scripts.networks.precision import open_device
from scripts.pairwise.images import AffineImages, OntoNetworkGridd, read_affine_images
from scripts.settings.affine import LearnedAffineConfig

__all__ = ["affine_loss", "affine_transforms", "open_affine_images", "synthetic_pairs"]


def open_affine_images(
    dataset_dir: str | Path, settings: LearnedAffineConfig, written: Sequence[str | Path] = ()
) -> AffineImages:
    """The images to learn from, after what can be known beforehand of the run's end.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: folders that the run will write to; locked while the result is in use.

    Raises:
        ConfigurationError: the machine lacks the device.
        StorageError: a folder can't be written, or another run is at work there.
        CohortError: see `read_affine_images`.
    """
    open_device(settings.device, settings.key("device"))
    with reserved(written) as users:
        images = read_affine_images(dataset_dir, settings)
        users.append(images)
    return images


def affine_transforms(images: AffineImages, settings: LearnedAffineConfig) -> Compose:
    """From a subject's files to its image on the network's grid."""
    return Compose([OntoNetworkGridd("image", images.grid, settings.images.log_share)])


def synthetic_pairs(images: AffineImages, settings: LearnedAffineConfig) -> SyntheticPairs:
    """The pairs that the settings ask for."""
    return SyntheticPairs(images.grid, settings.family, settings.pairs, settings.optimizer.seed)


def affine_loss(settings: LearnedAffineConfig) -> AffineLoss:
    """The loss that the settings ask for."""
    return AffineLoss(settings.loss.parameter_weight, settings.loss.image_weight)
