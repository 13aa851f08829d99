"""Training pairs made on the fly from single images; the true matrix is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.utils import convert_to_tensor

from scripts.pairwise.augmentation import intensity_augmentation, smooth_field
from scripts.pairwise.network_grid import WorkingGrid
from scripts.settings.affine import LearnedAffinePairsConfig
from scripts.spatial.affine_parameters import Frame, compose, invert, matrix_of, parameter_names
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.warp import warp

__all__ = ["Pairs", "SyntheticPairs", "sample_parameters"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of pairs.

    Attributes:
        pair: fixed and moving, augmented, ``(B, 2, *shape)``.
        clean: the same pair without intensity augmentation.
        matrix: true matrix, from fixed to moving point, mm, ``(B, 4, 4)`` float64.
        parameters: of that matrix, ``(B, P)`` float64.
    """

    pair: torch.Tensor
    clean: torch.Tensor
    matrix: torch.Tensor
    parameters: torch.Tensor


def sample_parameters(
    count: int,
    family: str,
    spatial_dims: int,
    ranges: LearnedAffinePairsConfig,
    generator: torch.Generator,
    share: float = 1.0,
) -> torch.Tensor:
    """Parameters ``(count, P)`` float64, each uniform within its range times ``share``."""
    largest = {
        "rotation": float(np.radians(ranges.rotation)),
        "translation": ranges.translation,
        "scale": ranges.scale,
        "shear": ranges.shear,
    }
    names = parameter_names(family, spatial_dims)
    reach = torch.tensor([largest[name.split("_")[0]] for name in names], dtype=torch.float64)
    random = torch.rand(count, len(names), generator=generator, dtype=torch.float64)
    return (2 * random - 1) * reach * share


class SyntheticPairs:
    """Makes pairs from single images.

    Both images show one subject in random poses. With a sampled transform A, one of them is warped
    by the INVERSE of its matrix: moving(y) = fixed(A^-1 y), so that moving(A x) = fixed(x). The
    transform to estimate, fixed to moving, then has exactly the sampled parameters, even in a
    transform model that isn't closed under inversion.

    Args:
        grid: of the network.
        family: transform model.
        settings: ranges and augmentations.
        seed: of the run; pairs depend only on it and on the key of the call.
    """

    def __init__(
        self, grid: WorkingGrid, family: str, settings: LearnedAffinePairsConfig, seed: int = 0
    ) -> None:
        self.grid = grid
        self.family = family
        self.settings = settings
        self.seed = seed
        self.augmentation = intensity_augmentation(
            settings.augmentations, grid.shape, settings.probability
        )

    def __call__(self, images: torch.Tensor, key: Sequence[int]) -> Pairs:
        """Pairs of images ``(B, 1, *shape)`` from 0 to 1; equal keys give equal pairs."""
        seeds = np.random.SeedSequence([self.seed, *key]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(seeds[0]))
        frame: Frame = self.grid.frame
        d, count = len(self.grid.shape), len(images)
        parameters = sample_parameters(count, self.family, d, self.settings, generator)
        pose = matrix_of(
            sample_parameters(count, "rigid", d, self.settings, generator, self.settings.pose),
            "rigid",
            frame,
        )
        matrix = matrix_of(parameters, self.family, frame)
        fixed = self._moved(images, pose)
        moving = self._moved(images, compose(invert(matrix), pose))
        if self.settings.warp > 0:
            fields = smooth_field(2 * count, self.grid.shape, self.settings.warp, generator)
            fields = fields.to(images.device)
            fixed, moving = warp(fixed, fields[:count]), warp(moving, fields[count:])
        clean = torch.cat([fixed, moving], dim=1)
        self.augmentation.set_random_state(seed=int(seeds[1]))
        flat = clean.reshape(-1, 1, *self.grid.shape)
        augmented = torch.stack([self._augmented(image) for image in flat])
        device = images.device
        return Pairs(
            augmented.reshape(clean.shape), clean, matrix.to(device), parameters.to(device)
        )

    def _moved(self, images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        affine, shape = self.grid.affine, self.grid.shape
        return resample_by_matrix(images, affine, matrix.to(images.device), affine, shape)

    def _augmented(self, image: torch.Tensor) -> torch.Tensor:
        """One image ``(1, *shape)``, scaled to 0 to 1."""
        # A copy: coarse dropout writes into what it is given, here the clean image.
        changed = convert_to_tensor(
            self.augmentation(image.clone()),
            dtype=torch.float32,
            device=image.device,
            track_meta=False,
        )
        low, high = changed.min(), changed.max()
        return (changed - low) / (high - low).clamp_min(1e-6)
