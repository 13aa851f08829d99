"""Endless pairs of images with a known move between them, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from scripts.errors import ConfigurationError, shown
from scripts.networks.integration import VelocityIntegration
from scripts.shipped.bundles import RandomBundle, moved_density, of_another, random_bundles
from scripts.shipped.flows import random_velocity
from scripts.shipped.noise import smooth
from scripts.shipped.shapes import RandomShapes
from scripts.spatial.warp import warp

__all__ = ["GeneratedPair", "PairGenerator"]

SHAPES = ((48, 56, 48), (56, 48, 48), (48, 48, 56), (40, 56, 56))
"""Grids of the pairs; all have about as many voxels."""
KINDS = ("bundles", "images")
_FACTOR = 2  # by which grids of velocities are reduced
_LARGEST = 4.5  # voxels r.m.s. of a move


@dataclass(frozen=True)
class GeneratedPair:
    """A template, a subject, and the move that leads from the one to the other.

    Args:
        moving: the template, ``(1, 1, *shape)``, log1p(x / offset), not negative.
        fixed: the subject, likewise.
        velocity: ``(1, 3, *ceil(shape / 2))`` in voxels; its flow warps moving to fixed.
        tissue: ``(1, 1, *shape)`` bool, where one of the images shows something, or near it.
        size: of a voxel along each axis, relative to their geometric mean.
        kind: ``bundles`` or ``images``.
    """

    moving: torch.Tensor
    fixed: torch.Tensor
    velocity: torch.Tensor
    tissue: torch.Tensor
    size: tuple[float, float, float]
    kind: str


class PairGenerator:
    """Pair number ``index`` of a seed is the same on every machine, independent of earlier pairs.

    Half of the pairs are tract densities, half are images of random shapes. A template is as sharp
    as a subject, or as blurred as the first average of a cohort.

    Args:
        seed: of all pairs.
        shapes: the grids that pairs are made on.
        kinds: of the pairs. With one alone, pairs of it stay as they are with both; the others
            keep their grid and their move.

    Raises:
        ConfigurationError: there is no such kind.
    """

    def __init__(
        self,
        seed: int = 0,
        shapes: Sequence[Sequence[int]] = SHAPES,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        if not isinstance(kinds, list | tuple) or not kinds or any(k not in KINDS for k in kinds):
            raise ConfigurationError(
                f"pairs#kinds = {shown(kinds)}: must be a list of one or both of "
                f"{', '.join(KINDS)}, such as [{KINDS[0]}]"
            )
        self.kinds = tuple(kinds)
        self.seed = seed
        self.shapes = [tuple(shape) for shape in shapes]
        self.integration = VelocityIntegration(7, _FACTOR)

    def __getitem__(self, index: int) -> GeneratedPair:
        """Pair number ``index``, from 0 without end."""
        rng = np.random.default_rng([self.seed, index])
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        size = np.ones(3)
        if rng.random() < 0.4:  # slices thicker than their pixels, and the like
            size = np.exp(rng.uniform(-0.35, 0.35, 3))
            size /= size.prod() ** (1 / 3)
        length = _LARGEST * rng.random() ** 0.7
        velocity = random_velocity(rng, shape, size, length, affine=float(rng.random()))
        drawn = KINDS[0] if rng.random() < 0.5 else KINDS[1]
        kind = drawn if drawn in self.kinds else self.kinds[0]
        make = self._bundles if kind == "bundles" else self._images
        moving, fixed, kind = make(rng, shape, size, velocity)
        if rng.random() < 0.1:  # one of the two ends where the field of view did
            _cut(moving if rng.random() < 0.5 else fixed, rng)
        tissue = _dilated((moving > 0.05) | (fixed > 0.05))
        sizes = (float(size[0]), float(size[1]), float(size[2]))
        return GeneratedPair(
            moving[None, None], fixed[None, None], velocity, tissue[None, None], sizes, kind
        )

    # -- tract densities -------------------------------------------------------------------

    def _bundles(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        size: NDArray[np.float64],
        velocity: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        count = int(np.exp(rng.uniform(np.log(3), np.log(40))))
        box = np.array(shape) * size
        bundles = random_bundles(rng, box, count, mirrored=rng.random() < 0.5)
        lines = int(np.exp(rng.uniform(np.log(600), np.log(3000))))
        # Points move against the pull of images: a template's point p moves to exp(-v)(p).
        fixed = self._density(of_another(bundles, rng), lines, shape, size, -velocity, rng)
        moving = torch.zeros(shape)
        blurs = self._blurs(rng, shape, size)
        for blur in blurs:
            moving += self._density(bundles, lines, shape, size, blur, rng) / len(blurs)
        if len(blurs) > 1 and rng.random() < 0.5:
            moving = smooth(moving[None], list(rng.uniform(0.3, 1.5) / size))[0]
        if rng.random() < 0.3:  # as smooth as probabilistic tracking leaves them
            width = list(rng.uniform(0.3, 0.8) / size)
            moving, fixed = smooth(moving[None], width)[0], smooth(fixed[None], width)[0]
        offset = float(np.exp(rng.uniform(np.log(1e-4), np.log(3e-2)))) * float(fixed.max())
        return torch.log1p(moving / offset), torch.log1p(fixed / offset), "bundles"

    def _blurs(
        self, rng: np.random.Generator, shape: tuple[int, ...], size: NDArray[np.float64]
    ) -> list[torch.Tensor]:
        """Velocities, of mean 0, of the copies that a template is the mean of."""
        if rng.random() < 0.5:
            return [torch.zeros(1, 3, *[-(-n // _FACTOR) for n in shape])]
        count, length = int(rng.integers(2, 5)), rng.uniform(0.5, 4)
        velocities = torch.cat([random_velocity(rng, shape, size, length) for _ in range(count)])
        return list((velocities - velocities.mean(0)).split(1))

    def _density(
        self,
        bundles: Sequence[RandomBundle],
        lines: int,
        shape: tuple[int, ...],
        size: NDArray[np.float64],
        velocity: torch.Tensor,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        move = self.integration(velocity, shape, reduction=_FACTOR, rough=True)
        return moved_density(bundles, lines, shape, list(size), move, rng)

    # -- images ----------------------------------------------------------------------------

    def _images(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        size: NDArray[np.float64],
        velocity: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        shapes = RandomShapes(rng, shape, size)
        clean = shapes.clean[None, None]
        warped = warp(clean, self.integration(velocity, shape), padding_mode="border")
        fixed = shapes.acquired(warped[0, 0], rng, size)
        moving = torch.zeros(shape)
        blurs = self._blurs(rng, shape, size)
        for blur in blurs:
            copy = warp(clean, self.integration(blur, shape), padding_mode="border")[0, 0]
            moving += shapes.acquired(copy, rng, size) / len(blurs)
        if len(blurs) > 1 and rng.random() < 0.5:
            moving = smooth(moving[None], list(rng.uniform(0.3, 1.5) / size))[0]
        offset = float(np.exp(rng.uniform(np.log(0.01), np.log(3))))
        return torch.log1p(moving / offset), torch.log1p(fixed / offset), "images"


def _cut(image: torch.Tensor, rng: np.random.Generator) -> None:
    """Set up to an eighth of an image ``(X, Y, Z)`` at one of its faces to 0."""
    axis = int(rng.integers(3))
    n = image.shape[axis]
    planes = int(rng.integers(1, max(2, n // 8)))
    image.narrow(axis, 0 if rng.random() < 0.5 else n - planes, planes).zero_()


def _dilated(mask: torch.Tensor) -> torch.Tensor:
    """A mask ``(X, Y, Z)`` and all voxels up to two from it along each axis."""
    near = mask.float()[None, None]
    for window in ((5, 1, 1), (1, 5, 1), (1, 1, 5)):
        near = F.max_pool3d(near, window, stride=1, padding=[n // 2 for n in window])
    return near[0, 0] > 0
