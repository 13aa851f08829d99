"""Endless pairs of images with a known affine transform between them, from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.networks.grids import reduced_shape
from scripts.networks.integration import VelocityIntegration
from scripts.shipped.bundles import moved_density, of_another, random_bundles
from scripts.shipped.centred_grid import centred_points
from scripts.shipped.flows import random_velocity
from scripts.shipped.noise import smooth
from scripts.shipped.shapes import RandomShapes
from scripts.spatial.warp import warp

__all__ = ["AffinePair", "AffinePairGenerator"]

SHAPES = ((32, 36, 32), (36, 32, 28), (32, 32, 36), (28, 36, 36))
_FACTOR = 2  # by which grids of velocities are reduced
_ONES = np.ones(3)


@dataclass(frozen=True)
class AffinePair:
    """Two images of one anatomy, and the map between them.

    Attributes:
        moving: ``(1, 1, *shape)``, not negative.
        fixed: likewise: ``fixed(x) = moving(x + move(x))`` but for acquisition and sampling.
        move: ``(1, 3, *shape)`` in voxels: an affine transform after a small flow.
        kind: ``bundles`` or ``images``.
    """

    moving: torch.Tensor
    fixed: torch.Tensor
    move: torch.Tensor
    kind: str


class AffinePairGenerator:
    """Pair number ``index`` of a seed is the same on every machine, whatever was made before.

    Images and bundles are those that the registration network was trained on
    (`scripts.shipped.pairs`); the moves are larger. Half of the pairs are tract densities, half
    are images of random shapes.

    Args:
        seed: of all pairs.
        shapes: the grids that pairs are made on.
        rotation: largest angle about a random axis, degrees.
        translation: standard deviation along each axis, as a share of the mean side.
        scale: standard deviation of the logarithm of each axis's scale, and of that of all axes.
        shear: standard deviation.
        flow: largest r.m.s. of the flow, voxels.
    """

    def __init__(
        self,
        seed: int = 0,
        shapes: Sequence[Sequence[int]] = SHAPES,
        rotation: float = 45.0,
        translation: float = 0.06,
        scale: float = 0.1,
        shear: float = 0.08,
        flow: float = 2.0,
    ) -> None:
        self.seed = seed
        self.shapes = [tuple(shape) for shape in shapes]
        self.rotation = rotation
        self.translation = translation
        self.scale = scale
        self.shear = shear
        self.flow = flow
        self.integration = VelocityIntegration(7, _FACTOR)

    @property
    def plan(self) -> dict[str, object]:
        """The arguments that determine the pairs."""
        names = ("seed", "rotation", "translation", "scale", "shear", "flow")
        return {name: getattr(self, name) for name in names}

    def __getitem__(self, index: int) -> AffinePair:
        """Pair number ``index``, from 0 without end."""
        rng = np.random.default_rng([self.seed, 18, index])
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        matrix = self._matrix(rng, shape)
        velocity = random_velocity(rng, shape, _ONES, self.flow * float(rng.random()))
        flow = self.integration(velocity, shape)
        points = _places(shape)
        move = _apply(matrix, points + flow[0]) - points
        if rng.random() < 0.5:
            images, kind = self._images(rng, shape, move[None]), "images"
        else:
            images, kind = self._bundles(rng, shape, matrix, velocity), "bundles"
        moving, fixed = images
        return AffinePair(moving[None, None], fixed[None, None], move[None], kind)

    def _matrix(self, rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float64]:
        """``(3, 4)``, fixed to moving points, voxels from the centre."""
        axis = rng.standard_normal(3)
        x, y, z = axis / np.linalg.norm(axis)
        angle = math.radians(self.rotation) * float(rng.random())
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        scales = np.exp(rng.normal(0, self.scale, 3) + rng.normal(0, self.scale))
        shears = np.eye(3)
        shears[np.triu_indices(3, 1)] = rng.normal(0, self.shear, 3)
        shift = rng.normal(0, self.translation * float(np.mean(shape)), 3)
        return np.column_stack([turn @ shears * scales, shift])

    def _images(
        self, rng: np.random.Generator, shape: tuple[int, ...], move: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = RandomShapes(rng, shape, _ONES)
        clean = shapes.clean[None, None]
        moving = shapes.acquired(shapes.clean, rng, _ONES)
        fixed = shapes.acquired(warp(clean, move, padding_mode="zeros")[0, 0], rng, _ONES)
        return moving, fixed

    def _bundles(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        matrix: NDArray[np.float64],
        velocity: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = int(np.exp(rng.uniform(np.log(3), np.log(40))))
        bundles = random_bundles(rng, shape, count, mirrored=rng.random() < 0.5)
        lines = int(np.exp(rng.uniform(np.log(400), np.log(2000))))
        fixed_bundles = of_another(bundles, rng)
        # A moving point p lies at exp(-v)(A^-1 p) in the fixed image.
        half = _places(shape, _FACTOR)
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 0, 1]]))[:3]
        away = _apply(back, half) - half
        flow = self.integration(-velocity, shape, reduction=_FACTOR)
        onward = warp(flow, away[None] / _FACTOR, padding_mode="border")[0]
        still = torch.zeros(1, *half.shape)
        moving = moved_density(bundles, lines, shape, _ONES, still, rng)
        fixed = moved_density(fixed_bundles, lines, shape, _ONES, (away + onward)[None], rng)
        if rng.random() < 0.5:  # as smooth as probabilistic tracking leaves them
            width = [float(rng.uniform(0.3, 0.8))] * 3
            moving, fixed = smooth(moving[None], width)[0], smooth(fixed[None], width)[0]
        offset = float(np.exp(rng.uniform(np.log(3e-4), np.log(0.3)))) * float(moving.max())
        return torch.log1p(moving / offset), torch.log1p(fixed / offset)


def _places(shape: Sequence[int], factor: int = 1) -> torch.Tensor:
    """`centred_points` as a map ``(3, *reduced)`` float32."""
    points = centred_points(shape, factor).T.reshape(3, *reduced_shape(shape, factor))
    return points.float()


def _apply(matrix: NDArray[np.float64], points: torch.Tensor) -> torch.Tensor:
    """A ``(3, 4)`` map of points ``(3, *shape)``."""
    affine = torch.from_numpy(matrix).float()
    return torch.einsum("ij,j...->i...", affine[:, :3], points) + affine[:, 3].view(3, 1, 1, 1)
