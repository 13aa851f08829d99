"""Finds all voxels that a streamline passes through, exactly, without a step size.

A voxel is the half-open box of half a voxel around its centre. A streamline visits the voxels that
contain one of its points, and those that a segment between two points crosses over some length. A
voxel whose corner or edge is only touched isn't visited.

The method is that of Amanatides and Woo ("A fast voxel traversal algorithm for ray tracing",
Eurographics 1987), for all segments at once and without sorting: a segment enters each voxel after
the first through a plane between two voxels, and where it crosses that plane, the other two
coordinates determine the voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scripts.tractograms.streamlines import Streamlines

__all__ = ["Visits", "visited_voxels"]

_TOUCH = 1e-9  # voxels: planes crossed within this distance count as crossed at once
_CROSSINGS = 1 << 20  # processed at a time
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads neighbours evenly


@dataclass(frozen=True, eq=False)
class Visits:
    """Pairs of a streamline and a voxel that it visits, each pair once.

    The grid has a border of one voxel that stands for everything outside, so that no index needs
    a check.

    Attributes:
        streamlines: index of the streamline, ``(V,)`` int64, in no particular order.
        voxels: flat index (C order) into the grid with its border, ``(V,)`` int64.
        outside: number of points outside the grid.
        left: number of streamlines with such a point.
    """

    streamlines: np.ndarray
    voxels: np.ndarray
    outside: int
    left: int


def visited_voxels(
    streamlines: Streamlines, shape: tuple[int, ...], affine: np.ndarray, ends: bool = False
) -> Visits:
    """Find the voxels of a grid that each streamline visits.

    Temporary arrays are about 40 times as large as the points: pass a part of a tractogram.

    Args:
        streamlines: RAS mm, finite.
        shape: of the grid, three axes.
        affine: ``(4, 4)``, voxels to RAS mm.
        ends: only the voxels of the first and the last point.

    Returns:
        Every pair (streamline, voxel) once.
    """
    points, offsets = streamlines.points, streamlines.offsets
    lengths = streamlines.lengths
    if ends:
        both = np.stack([offsets[:-1], offsets[1:] - 1], axis=1)[lengths > 0]
        points = points[both.ravel()]
        lengths = np.where(lengths > 0, 2, 0)
    if not len(points):
        none = np.zeros(0, np.int64)
        return Visits(none, none, 0, 0)
    size = tuple(n + 2 for n in shape)
    bits = math.prod(size).bit_length()
    if len(lengths) >> (63 - bits):
        raise ValueError(f"{len(lengths)} streamlines at once are too many for a grid of {shape}")

    place = _places(points, affine)
    cell = [np.floor(along) for along in place]
    outside, left = 0, 0
    within = all(x.min() >= 1 and x.max() < n - 1 for x, n in zip(cell, size, strict=True))
    if not within:
        # Keep indices small for any points; details outside the grid don't matter.
        for x, n in zip(cell, size, strict=True):
            np.clip(x, 0, n - 1, out=x)
        away = np.any([(x == 0) | (x == n - 1) for x, n in zip(cell, size, strict=True)], axis=0)
        outside = int(np.count_nonzero(away))
        left = len(np.unique(np.repeat(np.arange(len(lengths)), lengths)[away]))

    # One number per pair: the streamline in the high digits, the voxel in the low ones.
    keys = _flat(cell, size)
    keys += np.repeat(np.arange(len(lengths), dtype=np.int64) << bits, lengths)
    # A point in the voxel of the previous one adds no visit.
    moved = np.empty(len(keys), dtype=bool)
    moved[0] = True
    np.not_equal(keys[1:], keys[:-1], out=moved[1:])
    parts = [keys[moved]]
    if not ends:
        starts = np.cumsum(lengths[:-1])
        moved[0] = False
        moved[starts[starts < len(moved)]] = False
        parts += _between(place, cell, keys, np.flatnonzero(moved), size)
    every = _distinct(np.concatenate(parts) if len(parts) > 1 else parts[0])
    return Visits(every >> bits, every & ((1 << bits) - 1), outside, left)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Distinct values, in no particular order; several times faster than sorting.

    Every value writes its index into a hash table of four times as many slots. A value that reads
    its index back stays; one that reads the index of an equal value is dropped. Only the few values
    whose slot was taken by another value are sorted. Equal values share a slot, so no value is
    missed.
    """
    n = len(keys)
    bits = max(4, (4 * n).bit_length())
    place = ((keys.view(np.uint64) * _MIXER) >> np.uint64(64 - bits)).view(np.int64)
    index = np.arange(n, dtype=np.int32)
    table = np.empty(1 << bits, dtype=np.int32)  # only slots written below are read
    table[place] = index
    winner = table[place]
    wins = winner == index
    lost = np.flatnonzero(~wins)
    if not len(lost):
        return keys
    beaten = keys[lost]
    others = beaten[keys[winner[lost]] != beaten]
    return (
        np.concatenate([keys[wins], np.unique(others, sorted=False)]) if len(others) else keys[wins]
    )


def _places(points: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """Voxel coordinates, one array per axis; the corner of the border's first voxel is 0."""
    to_voxels = np.linalg.inv(affine)
    shift = to_voxels[:3, 3] + 1.5
    columns = [np.ascontiguousarray(points[:, axis], dtype=np.float64) for axis in range(3)]
    places = []
    for row, move in zip(to_voxels[:3, :3], shift, strict=True):
        along = np.full(len(points), move)
        for factor, column in zip(row, columns, strict=True):
            if factor:
                along += factor * column
        places.append(along)
    return places


def _flat(cell: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """Flat index of voxels given as integral float64 numbers (exact: far below 2**53)."""
    flat = cell[0] * size[1]
    flat += cell[1]
    flat *= size[2]
    flat += cell[2]
    return flat.astype(np.int64)


def _between(
    place: list[np.ndarray],
    cell: list[np.ndarray],
    keys: np.ndarray,
    stepped: np.ndarray,
    size: tuple[int, ...],
) -> Iterator[np.ndarray]:
    """Keys of the voxels that segments cross between the voxels of their two points.

    Args:
        place: voxel coordinates of the points, one array per axis.
        cell: their voxels.
        keys: keys of these voxels.
        stepped: points whose voxel differs from that of the point before on the same streamline.
        size: of the grid with its border.
    """
    steps = [x[stepped] - x[stepped - 1] for x in cell]
    planes = np.abs(steps[0])
    planes += np.abs(steps[1])
    planes += np.abs(steps[2])
    # Most segments step through a face into the next voxel, with no voxel between.
    some = np.flatnonzero(planes > 1)
    if not len(some):
        return
    longest = np.maximum(np.abs(steps[0][some]), np.abs(steps[1][some]))
    np.maximum(longest, np.abs(steps[2][some]), out=longest)
    near = some[longest < 2]
    if len(near):
        b = stepped[near]
        yield from _through_corner(
            [x[b - 1] for x in place],
            [x[b] for x in place],
            [x[near] for x in steps],
            [x[b] for x in cell],
            keys[b - 1],
            keys[b],
            size,
        )
    far = some[longest >= 2]
    blocks = np.cumsum(planes[far]) // _CROSSINGS
    for number in np.unique(blocks):
        b = stepped[far[blocks == number]]
        a, d = [x[b - 1] for x in place], [x[b] - x[b - 1] for x in place]
        first, last = [x[b - 1] for x in cell], [x[b] for x in cell]
        base = keys[b - 1] - _flat(first, size)
        for axis in range(3):
            yield from _entered(axis, a, d, first, last, base, size)


def _through_corner(
    a: list[np.ndarray],
    b: list[np.ndarray],
    step: list[np.ndarray],
    last: list[np.ndarray],
    key_a: np.ndarray,
    key_b: np.ndarray,
    size: tuple[int, ...],
) -> Iterator[np.ndarray]:
    """Keys between voxels that share an edge or a corner: two or three planes, one per axis.

    These are the voxel behind the plane that is crossed first and the voxel before the plane that
    is crossed last. With two planes both are the same.

    Args:
        a: starts, voxel coordinates, one array per axis.
        b: ends.
        step: -1, 0 or 1 along each axis from the voxel of the start to that of the end.
        last: voxels of the ends.
        key_a: keys of the start voxels.
        key_b: keys of the end voxels.
        size: of the grid with its border.
    """
    strides = (size[1] * size[2], size[2], 1)
    when, into, speed = [], [], np.zeros(len(key_a))
    for start, end, move, voxel, stride in zip(a, b, step, last, strides, strict=True):
        way = end - start
        # The plane between both voxels: the lower face of the higher one.
        t = voxel - start
        t += move < 0
        with np.errstate(divide="ignore", invalid="ignore"):
            t /= way
        t[move == 0] = np.inf
        when.append(t)
        into.append(move.astype(np.int64) * stride)
        speed += np.abs(way)
    low, high = np.minimum(when[0], when[1]), np.maximum(when[0], when[1])
    earliest = np.minimum(low, when[2])
    middle = np.maximum(low, np.minimum(high, when[2]))
    # Planes crossed at the same position count as crossed together: edges aren't walked around.
    touch = _TOUCH / speed
    apart = middle - earliest > touch
    chosen = np.where(when[0] == earliest, into[0], into[2])
    chosen = np.where(when[1] == earliest, into[1], chosen)
    yield (key_a + chosen)[apart]
    latest = np.maximum(high, when[2])
    three = np.flatnonzero((latest < np.inf) & (latest - middle > touch))
    if len(three):
        latest = latest[three]
        chosen = np.where(when[0][three] == latest, into[0][three], into[2][three])
        chosen = np.where(when[1][three] == latest, into[1][three], chosen)
        yield key_b[three] - chosen


def _entered(
    axis: int,
    a: list[np.ndarray],
    d: list[np.ndarray],
    first: list[np.ndarray],
    last: list[np.ndarray],
    base: np.ndarray,
    size: tuple[int, ...],
) -> Iterator[np.ndarray]:
    """Keys of the voxels that segments enter through the planes of one axis.

    Args:
        axis: the planes are perpendicular to it.
        a: starts, voxel coordinates, one array per axis.
        d: vectors from start to end.
        first: start voxels.
        last: end voxels.
        base: key of the segment's streamline and voxel 0.
        size: of the grid with its border.
    """
    count = last[axis] - first[axis]
    number = np.abs(count).astype(np.int64)
    which = np.repeat(np.arange(len(number)), number)
    if not len(which):
        return
    # The crossings of a segment are numbered from 1, in the order of the path.
    nth = np.arange(1, len(which) + 1) - np.repeat(np.cumsum(number) - number, number)
    up = count[which] > 0
    entered = first[axis][which] + np.where(up, nth, -nth)
    plane = np.where(up, entered, entered + 1)
    t = (plane - a[axis][which]) / d[axis][which]
    voxels = [entered] * 3
    for other in range(3):
        if other == axis:
            continue
        way = d[other][which]
        at = a[other][which] + t * way
        # As above: planes crossed at the same position count as crossed together.
        voxel = np.where(way < 0, np.ceil(at - _TOUCH) - 1, np.floor(at + _TOUCH))
        # Rounding must not lead beyond the voxels of the segment's ends.
        ends = first[other][which], last[other][which]
        voxels[other] = np.clip(voxel, np.minimum(*ends), np.maximum(*ends))
    yield base[which] + _flat(voxels, size)
