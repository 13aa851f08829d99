"""Dice of labels that a network for pairs propagates between held-out subjects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scripts.networks.described import DescribedNetwork
from scripts.networks.unwrapping import unwrapped
from scripts.pairwise.images import ImageSubject, PairImages, read_image
from scripts.pairwise.network_grid import between_0_and_1
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.elastic import LearnedElasticConfig

__all__ = ["LabelOverlap", "hard_labels", "label_dice", "partners"]

logger = logging.getLogger(__name__)


def hard_labels(maps: torch.Tensor) -> torch.Tensor:
    """The most probable label of every voxel, 0 for the background.

    Args:
        maps: ``(L, *shape)`` shares of each label, 0 to 1; the rest is background.
    """
    background = 1 - maps.sum(0, keepdim=True)
    return torch.cat([background, maps]).argmax(0)


def label_dice(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean Dice over the labels that either contains, without the background; 1 if there is none.

    Args:
        first: ``(*shape)`` whole numbers.
        second: the same shape.
    """
    values = [int(v) for v in torch.cat([first.flatten(), second.flatten()]).unique() if v != 0]
    scores = [
        2.0 * float(((first == v) & (second == v)).sum())
        / float((first == v).sum() + (second == v).sum())
        for v in values
    ]  # fmt: skip
    return float(np.mean(scores)) if scores else 1.0


def partners(subjects: Sequence[ImageSubject], each: int) -> list[tuple[int, int]]:
    """Pairs (fixed, moving) of different persons, up to ``each`` for a fixed one."""
    count = len(subjects)
    persons = [one.person or one.name for one in subjects]
    result = []
    for i in range(count):
        others = [(i + k) % count for k in range(1, count)]
        result += [(i, j) for j in others if persons[j] != persons[i]][:each]
    return result


class LabelOverlap:
    """Registers the real images of held-out subjects and compares their labels.

    Labels are compared on the network's grid, each voxel with its most probable label.

    Args:
        network: with ``grid``, and ``moved`` that warps maps by the network's output.
        images: with label maps, or without: nothing is measured then.
        settings: give ``log_share`` and the number of pairs per subject.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        images: PairImages,
        settings: LearnedAffineConfig | LearnedElasticConfig,
    ) -> None:
        self.network: Any = unwrapped(network, DescribedNetwork)
        self.subjects = [one for one in images.held_out_subjects() if one.labels is not None]
        self.pairs = partners(self.subjects, settings.optimizer.validation_pairs)
        self.log_share = settings.images.log_share
        self._read: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self.subjects and not self.pairs:
            logger.warning("label Dice is not measured: it needs two held-out subjects")

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        """``label_dice``, ``label_dice_before`` and ``label_pairs``; empty without pairs."""
        if not self.pairs:
            return {}
        if not self._read:
            self._read_all()
        self.network.eval()
        device = next(self.network.parameters()).device
        before, after = [], []
        for i, j in self.pairs:
            (fixed, target), (moving, maps) = self._read[i], self._read[j]
            pair = torch.cat([fixed, moving])[None].to(device)
            field = self.network(pair)
            warped = self.network.moved(maps[None].to(device), field)[0].cpu()
            wanted = hard_labels(target)
            before.append(label_dice(wanted, hard_labels(maps)))
            after.append(label_dice(wanted, hard_labels(warped)))
        return {
            "label_dice": float(np.mean(after)),
            "label_dice_before": float(np.mean(before)),
            "label_pairs": float(len(self.pairs)),
        }

    def _read_all(self) -> None:
        """Images ``(1, *shape)`` from 0 to 1 and label maps ``(L, *shape)``, on the grid."""
        grid = self.network.grid
        volumes = [read_image([one.labels or ""]) for one in self.subjects]
        values = np.unique(np.concatenate([np.unique(volume) for volume, _ in volumes]))
        for one, (volume, place) in zip(self.subjects, volumes, strict=True):
            image, _ = read_image(one.image)
            resampled = grid.of_image(between_0_and_1(image, self.log_share), place.affine)
            maps = [grid.of_image(volume == value, place.affine) for value in values if value != 0]
            self._read.append((resampled, torch.cat(maps)))
