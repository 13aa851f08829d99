"""What the affine networks' configs name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose

from scripts.affine.pairs import SyntheticPairs
from scripts.affine.settings import LearnedAffineConfig
from scripts.affine.training import AffineLoss, RepeatedDataset
from scripts.affine.training_images import AffineImages, OntoNetworkGridd, read_affine_images
from scripts.engines.components import reserved
from scripts.networks.precision import open_device

__all__ = [
    "affine_loss",
    "affine_transforms",
    "open_affine_images",
    "pair_dataset",
    "synthetic_pairs",
]


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
    open_device(settings.device)
    with reserved(written) as users:
        images = read_affine_images(dataset_dir, settings)
        users.append(images)
    return images


def affine_transforms(images: AffineImages, settings: LearnedAffineConfig) -> Compose:
    """From a subject's files to its image on the network's grid."""
    return Compose([OntoNetworkGridd("image", images.grid, settings.images.log_share)])


def pair_dataset(data: Sequence[dict[str, Any]], transform: Compose, times: int) -> RepeatedDataset:
    """Images kept in memory (small ones, on the network's grid), each coming several times."""
    return RepeatedDataset(CacheDataset(data, transform, progress=False), times)


def synthetic_pairs(images: AffineImages, settings: LearnedAffineConfig) -> SyntheticPairs:
    """The pairs that the settings ask for."""
    return SyntheticPairs(images.grid, settings.family, settings.pairs, settings.optimizer.seed)


def affine_loss(settings: LearnedAffineConfig) -> AffineLoss:
    """The loss that the settings ask for."""
    return AffineLoss(settings.loss.parameter_weight, settings.loss.image_weight)
