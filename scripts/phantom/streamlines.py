"""Streamlines of a bundle, and the count of streamlines per voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from scripts.phantom.anatomy import Bundle, FloatArray

VERTEX_STEP = 0.5
"""Distance between the vertices of a streamline before it is deformed, voxels."""
COUNTING_STEP = 0.2
"""Longest step between the sampled points when voxels are counted."""
REACH = 2.5
"""Streamlines stay within this many standard deviations of their position in the bundle."""
FAN_PART = 0.4
"""Share of the length over which each end fans out."""
WIGGLE = 0.35
"""Standard deviation of the random path of a streamline around its curve, mm."""


def draw_streamlines(
    bundle: Bundle, count: int, step: float, rng: np.random.Generator
) -> FloatArray:
    """Random streamlines (count, M, 3) of one bundle in mm, vertices about ``step`` mm apart.

    A streamline keeps its position in the stem's cross-section (a normal distribution cut off at
    :data:`REACH` standard deviations), varies a little around it, and its ends spread over the
    fans.
    """
    centre = bundle.curve(step)
    along = np.linspace(0.0, 1.0, len(centre))
    first, second = _normals(centre)

    radius = bundle.stem * np.sqrt(
        -2 * np.log1p(-rng.random(count) * (1 - np.exp(-(REACH**2) / 2)))
    )
    angle = rng.uniform(0, 2 * np.pi, count)
    waves = np.sin(np.pi * np.arange(1, 4)[:, None] * along)
    meander = np.clip(rng.standard_normal((2, count, 3)), -REACH, REACH) @ waves * (WIGGLE / 1.5)
    across = (radius * np.cos(angle))[:, None] + meander[0]
    up = (radius * np.sin(angle))[:, None] + meander[1]
    points = centre + across[..., None] * first + up[..., None] * second

    place = rng.uniform(-1, 1, count)[:, None, None]
    for vector, ramp in zip(bundle.fan, (_ramp(along), _ramp(1 - along)), strict=True):
        points += place * ramp[:, None] * np.array(vector)
    return points


def _ramp(along: FloatArray) -> FloatArray:
    part = np.clip(1 - along / FAN_PART, 0, 1)
    return part**2


def _normals(curve: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two unit normals along a curve, rotated as little as possible from point to point."""
    tangents = np.gradient(curve, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normal = np.eye(3)[np.argmin(np.abs(tangents[0]))]
    first = np.empty_like(curve)
    for index, tangent in enumerate(tangents):
        normal = normal - (normal @ tangent) * tangent
        normal /= np.linalg.norm(normal)
        first[index] = normal
    return first, np.cross(tangents, first)


def deform(points: FloatArray, displacement: NDArray[np.float32]) -> FloatArray:
    """Points (..., 3) in voxels, moved by the displacement (3, X, Y, Z) in voxels: x + u(x)."""
    where = np.moveaxis(points, -1, 0).reshape(3, -1)
    moved = [
        where[axis] + map_coordinates(displacement[axis], where, order=1, mode="nearest")
        for axis in range(3)
    ]
    return np.stack(moved, axis=-1).reshape(points.shape)


def count_streamlines(points: FloatArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Number of streamlines (N, M, 3; voxels) through each voxel; each counts once per voxel.

    Segments are subdivided until no step exceeds :data:`COUNTING_STEP` of a voxel. Points outside
    outside the volume aren't counted.
    """
    start, move = points[:, :-1].reshape(-1, 3), np.diff(points, axis=1).reshape(-1, 3)
    pieces = np.maximum(1, np.ceil(np.linalg.norm(move, axis=1) / COUNTING_STEP)).astype(np.int64)
    owner = np.repeat(np.arange(len(pieces)), pieces)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    dense = start[owner] + move[owner] * (nth / pieces[owner])[:, None]
    streamline = owner // (points.shape[1] - 1)
    dense = np.concatenate([dense, points[:, -1]])
    streamline = np.concatenate([streamline, np.arange(len(points))])

    voxel = np.floor(dense + 0.5).astype(np.int64)
    inside = np.all((voxel >= 0) & (voxel < np.array(shape)), axis=1)
    size = int(np.prod(shape))
    visits = streamline[inside] * size + np.ravel_multi_index(tuple(voxel[inside].T), shape)
    # Neighbouring points mostly share a voxel: dropping the repeats first saves most sorting.
    visits = visits[np.r_[True, visits[1:] != visits[:-1]]] if len(visits) else visits
    visits = np.unique(visits)
    return np.bincount(visits % size, minlength=size).reshape(shape).astype(np.float32)
