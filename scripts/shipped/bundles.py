"""Random bundles of streamlines, and the density that they leave on a grid.

Curves are random walks: no real anatomy, and not that of the demo cohort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from scripts.shipped.noise import Lengths
from scripts.spatial.warp import sample

__all__ = ["RandomBundle", "moved_density", "of_another", "random_bundles"]

FloatArray = NDArray[np.float64]

_POINTS = 60  # a streamline
_STEP = 0.8  # voxels between points that are counted, where a streamline runs fastest
_REACH = 2.5  # standard deviations from the middle beyond which no streamline runs
_FANNED = 0.35  # of the length, at either end


@dataclass(frozen=True)
class RandomBundle:
    """The distribution that a bundle's streamlines are drawn from, in voxels of the mean size.

    Args:
        centre: points ``(60, 3)`` of the middle.
        across: two unit vectors at each point that span its cross-section, ``(2, 60, 3)``.
        radius: standard deviation along either, ``(2, 60)``.
        weight: streamlines drawn, relative to others.
    """

    centre: FloatArray
    across: FloatArray
    radius: FloatArray
    weight: float

    def mirrored(self, middle: float) -> RandomBundle:
        """The same bundle beyond the plane at ``middle`` of the first axis."""
        flip = np.array([-1.0, 1.0, 1.0])
        centre = self.centre * flip + np.array([2 * middle, 0, 0])
        return replace(self, centre=centre, across=self.across * flip)

    def streamlines(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Random streamlines ``(count, 60, 3)``."""
        place = np.clip(rng.standard_normal((2, count, 1)), -_REACH, _REACH)
        points = self.centre[None].repeat(count, 0)
        for vectors, radius, where in zip(self.across, self.radius, place, strict=True):
            points += (where * radius)[..., None] * vectors
        along = np.linspace(0, np.pi, _POINTS)
        waves = np.sin(along * np.arange(1, 4)[:, None])
        return points + np.einsum("nwc,wp->npc", rng.normal(0, 0.15, (count, 3, 3)), waves)


def random_bundles(
    rng: np.random.Generator, box: Lengths, count: int, mirrored: bool
) -> list[RandomBundle]:
    """Smooth random curves through a box, each with its width, fans and weight.

    Args:
        rng: where they come from.
        box: its lengths, in voxels of the mean size.
        count: how many; with ``mirrored`` about half of them are mirror images of others.
        mirrored: whether the two halves of the first axis are similar.
    """
    lengths = np.asarray(box, dtype=float)
    result: list[RandomBundle] = []
    while len(result) < count:
        bundle = _random_bundle(rng, lengths)
        result.append(bundle)
        if mirrored and len(result) < count and rng.random() < 0.85:
            result.append(bundle.mirrored(lengths[0] / 2))
    return result


def of_another(bundles: Sequence[RandomBundle], rng: np.random.Generator) -> list[RandomBundle]:
    """The bundles of another subject: with other weights, and a few of them missing."""
    return [
        replace(bundle, weight=bundle.weight * float(np.exp(0.3 * rng.normal())))
        for bundle in bundles
        if rng.random() > 0.06
    ] or list(bundles[:1])


def _random_bundle(rng: np.random.Generator, lengths: FloatArray) -> RandomBundle:
    knots = rng.integers(4, 8)
    margin = 0.06 * lengths
    step = rng.uniform(0.1, 0.25) * lengths.mean()
    place = rng.uniform(margin, lengths - margin)
    heading = _unit(rng.standard_normal(3))
    walk = [place]
    for _ in range(knots - 1):
        heading = _unit(heading + rng.normal(0, 0.45, 3))
        ahead = place + step * heading
        outside = (ahead < margin) | (ahead > lengths - margin)
        heading = np.where(outside, -heading, heading)
        place = np.clip(place + step * heading, margin, lengths - margin)
        walk.append(place)
    chord = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(walk, axis=0), axis=1) + 1e-3)]
    centre = CubicSpline(chord, np.array(walk))(np.linspace(0, chord[-1], _POINTS))
    along = _unit(np.gradient(centre, axis=0))
    guide = _unit(rng.standard_normal(3))
    first = _unit(np.cross(along, guide) + 1e-6)
    second = _unit(np.cross(along, first))
    part = np.linspace(0, 1, _POINTS)
    stem = rng.uniform(0.4, 1.6)
    radius = np.full((2, _POINTS), stem)
    for ramp in (part, part[::-1]):
        fan = rng.uniform(0.2, 3.5)
        flat = rng.uniform(0.2, 1.0)
        growth = np.clip(1 - ramp / _FANNED, 0, 1) ** 2
        radius += np.array([[fan], [fan * flat]]) * growth
    return RandomBundle(
        centre, np.stack([first, second]), radius, float(np.exp(0.7 * rng.normal()))
    )


def _unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def moved_density(
    bundles: Sequence[RandomBundle],
    count: int,
    shape: Sequence[int],
    size: Lengths,
    move: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Share of new streamlines of the bundles through each voxel, in per cent, after a move.

    Args:
        bundles: what is drawn from.
        count: streamlines in all.
        shape: of the grid.
        size: of a voxel along each axis, relative to their geometric mean.
        move: displacement ``(1, 3, *ceil(shape / 2))`` in voxels of the full grid, on the grid
            reduced by 2: a streamline's point p is found at p + move(p).
        rng: where the streamlines come from.
    """
    weights = np.array([bundle.weight for bundle in bundles])
    drawn = rng.multinomial(count, weights / weights.sum())
    lines = [b.streamlines(int(n), rng) for b, n in zip(bundles, drawn, strict=True) if n]
    points = torch.from_numpy((np.concatenate(lines) / np.asarray(size)).astype(np.float32))
    ends = torch.tensor(move.shape[2:], dtype=torch.float32)
    # Voxel x of the full grid is at (x - .5) / 2 of the reduced one; its faces are -1 and 1.
    places = ((points + 0.5) / ends - 1).flip(-1)
    shifts = sample(move, places[None, None], padding_mode="border", align_corners=False)
    return _visits(points + shifts[0, :, 0].movedim(0, -1), shape) * (100 / count)


def _visits(points: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Streamlines ``(n, m, 3)`` in voxels through each voxel, each counted once per visit."""
    longest = points.diff(dim=1).square().sum(-1).amax(1).sqrt()
    pieces = max(1, math.ceil(float(longest.median()) / _STEP))
    part = (torch.arange(pieces) / pieces).view(-1, 1)
    dense = torch.lerp(points[:, :-1, None], points[:, 1:, None], part)
    index, inside = None, None
    for axis, n in enumerate(shape):
        voxel = dense[..., axis].round().int()
        within = (voxel >= 0) & (voxel < n)
        inside = within if inside is None else inside.logical_and_(within)
        index = voxel if index is None else index.mul_(n).add_(voxel)
    assert index is not None and inside is not None
    index = torch.where(inside, index, -1).flatten(1)
    new = index[:, 1:] != index[:, :-1]
    visited = torch.cat([index[:, 0], index[:, 1:][new]]) + 1
    counts = torch.bincount(visited, minlength=math.prod(shape) + 1)[1:]
    return counts.view(tuple(shape)).float()
