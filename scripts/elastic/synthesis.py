"""Pairs of images of random contrast, made from label maps, to learn registration from.

Hoffmann et al., SynthMorph: learning contrast-invariant registration without acquired images, IEEE
TMI 2022.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from scripts.cohort.density import DensityError
from scripts.errors import CohortError
from scripts.pairwise.augmentation import intensity_augmentation, smooth_field
from scripts.pairwise.images import PairImages, read_image
from scripts.pairwise.network_grid import WorkingGrid
from scripts.settings.elastic import LearnedElasticConfig, LearnedElasticSynthesisConfig
from scripts.spatial.warp import warp

__all__ = ["LabelMapsd", "SyntheticPair", "SyntheticPairsOfLabels", "label_values", "painted"]

_MOST_LABELS = 256


def label_values(images: PairImages, settings: LearnedElasticConfig) -> list[int]:
    """The sorted labels of a cohort's volumes without 0; none for presence maps.

    Raises:
        CohortError: a volume contains values other than whole numbers, or too many labels.
    """
    if settings.images.kind == "presence":
        return []
    values_found: set[int] = set()
    for subject in images.subjects:
        for path in subject.paths:
            values = np.unique(read_image([path])[0])
            if not np.array_equal(values, np.round(values)) or len(values) > _MOST_LABELS:
                raise DensityError(
                    Path(path),
                    f"not a label volume: {len(values)} different values, must be at most "
                    f"{_MOST_LABELS} whole numbers (for density maps: "
                    "--learned_elastic#images#kind presence)",
                )
            if np.abs(values).max() >= 2**53:
                raise DensityError(
                    Path(path),
                    f"has a label of {np.abs(values).max():.4g}; labels from 2^53 on can't be "
                    "distinguished: use smaller numbers",
                )
            values_found.update(int(value) for value in values)
    values_found.discard(0)
    if not values_found:
        raise CohortError("the label volumes contain no label but 0")
    return sorted(values_found)


class LabelMapsd(MapTransform):
    """Turn files into maps of each label on the network's grid.

    Args:
        keys: of lists of paths; ``channel`` has the tract of each.
        grid: of the network.
        values: labels of the volumes; empty for presence maps.
        levels: shares of a density's maximum, for presence maps.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid: WorkingGrid,
        values: Sequence[int] = (),
        levels: Sequence[float] = (0.0,),
    ) -> None:
        super().__init__(keys)
        self.grid = grid
        self.values = values
        self.levels = levels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths by ``(L, *shape)`` float32 from 0 to 1."""
        result = dict(data)
        channels = result.pop("channel")
        for key in self.key_iterator(result):
            maps = []
            for one in sorted(set(channels)):
                paths = [p for p, c in zip(result[key], channels, strict=True) if c == one]
                image, grid = read_image(paths, len(self.grid.shape))
                masks = (
                    [image == value for value in self.values]
                    if self.values
                    else [image > level * image.max() for level in self.levels]
                )
                maps += [self.grid.of_image(mask, grid.affine) for mask in masks]
            result[key] = torch.cat(maps)
        return result


def painted(labels: torch.Tensor, shades: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Images ``(B, 1, *shape)`` from label maps, with one grey value per label.

    Where labels overlap, their grey values are averaged; where they fade, the background shows.

    Args:
        labels: ``(B, L, *shape)`` from 0 to 1.
        shades: ``(B, L)``.
        background: ``(B,)``.
    """
    spread = [1] * (labels.dim() - 2)
    total = labels.sum(1, keepdim=True)
    colour = (labels * shades.view(*shades.shape, *spread)).sum(1, keepdim=True)
    cover = labels.amax(1, keepdim=True)
    mean = colour / total.clamp_min(1e-6)
    return cover * mean + (1 - cover) * background.view(-1, 1, *spread)


@dataclass(frozen=True, eq=False)
class SyntheticPair:
    """A batch of pairs.

    Attributes:
        pair: synthetic images, fixed and moving, ``(B, 2, *shape)``, 0 to 1.
        fixed: label maps ``(B, L, *shape)``.
        moving: label maps ``(B, L, *shape)``.
    """

    pair: torch.Tensor
    fixed: torch.Tensor
    moving: torch.Tensor


class SyntheticPairsOfLabels:
    """Makes pairs from label maps: two shapes with two independent contrasts.

    Args:
        shape: of the network's grid.
        settings: of the synthesis.
        seed: of the run; pairs depend only on it and on the key of the call.
    """

    def __init__(
        self, shape: Sequence[int], settings: LearnedElasticSynthesisConfig, seed: int = 0
    ) -> None:
        self.shape = tuple(shape)
        self.settings = settings
        self.seed = seed
        self.augmentation = intensity_augmentation(
            settings.augmentations, shape, settings.probability
        )

    def __call__(self, labels: torch.Tensor, key: Sequence[int]) -> SyntheticPair:
        """Pairs of label maps ``(B, L, *shape)``; equal keys give equal pairs.

        The second subject of a pair is the next one in the batch.
        """
        seeds = np.random.SeedSequence([self.seed, *key]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(seeds[0]))
        count = len(labels)
        other = torch.rand(count, generator=generator) < self.settings.between_subjects
        spread = [1] * (labels.dim() - 1)
        both = torch.where(other.view(-1, *spread).to(labels.device), labels.roll(-1, 0), labels)
        fixed, moving = labels, both
        if self.settings.warp > 0:
            fields = smooth_field(2 * count, self.shape, self.settings.warp, generator)
            fields = fields.to(labels.device)
            fixed, moving = warp(fixed, fields[:count]), warp(moving, fields[count:])
        self.augmentation.set_random_state(seed=int(seeds[1]))
        images = [self._image(maps, generator) for maps in (fixed, moving)]
        return SyntheticPair(torch.cat(images, dim=1), fixed, moving)

    def _image(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images ``(B, 1, *shape)`` of random contrast, from 0 to 1."""
        count = len(labels)
        shades = torch.rand(count, labels.shape[1], generator=generator)
        background = torch.rand(count, generator=generator)
        empty = torch.rand(count, generator=generator) < self.settings.empty_background
        background = torch.where(empty, torch.zeros(()), background)
        image = painted(labels, shades.to(labels.device), background.to(labels.device))
        done = []
        for one in image:
            changed = convert_to_tensor(
                self.augmentation(one), dtype=torch.float32, device=one.device, track_meta=False
            )
            low, high = changed.min(), changed.max()
            done.append((changed - low) / (high - low).clamp_min(1e-6))
        return torch.stack(done)
