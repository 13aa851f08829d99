"""Streamlines as vectors whose distance is a root mean square distance in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.tractograms.streamlines import Streamlines, resample

__all__ = ["Features", "fibre_features"]

_CHUNK = 4096


@dataclass(frozen=True)
class Features:
    """Vectors of the usable streamlines.

    Attributes:
        vectors: ``(n, 3 * n_points)`` float32, points in order, x y z within a point.
        kept: ``(n,)`` indices of these streamlines; ascending.
        count: number of streamlines given.
        degenerate: number of streamlines left out, by reason.
    """

    vectors: np.ndarray
    kept: np.ndarray
    count: int
    degenerate: dict[str, int]


def fibre_features(streamlines: Streamlines, n_points: int, end_weight: float) -> Features:
    """Vectors of streamlines: points evenly along the arc, divided by ``sqrt(n_points)``.

    The distance of two vectors is the root mean square distance of the points, in mm; the first and
    the last point count ``end_weight`` squared times. Streamlines have no direction: each is first
    turned so that its smaller end (by x, then y, then z) comes first, which makes its vector
    independent of the direction, to the bit.

    Args:
        streamlines: RAS mm.
        n_points: points per vector, at least 2.
        end_weight: factor of the coordinates of both ends.

    Returns:
        The vectors; streamlines with a non-finite point, with fewer than two points or without
        length are left out and counted.
    """
    vectors, kept = [], []
    broken = short = still = 0
    for start in range(0, len(streamlines), _CHUNK):
        stop = min(start + _CHUNK, len(streamlines))
        offsets = streamlines.offsets[start : stop + 1]
        points = streamlines.points[offsets[0] : offsets[-1]]
        part = Streamlines(points, offsets - offsets[0])
        bad = np.concatenate([[0], np.cumsum(~np.isfinite(points).all(1))])[part.offsets]
        finite = bad[1:] == bad[:-1]
        long = part.lengths > 1
        broken += int((~finite).sum())
        short += int((finite & ~long).sum())
        good = np.flatnonzero(finite & long)
        places = resample(_turned(part.take(good)), n_points)
        moving = (places != places[:, :1]).any((1, 2))
        still += int((~moving).sum())
        vectors.append(places[moving])
        kept.append(good[moving] + start)
    every = np.concatenate(vectors) if vectors else np.zeros((0, n_points, 3), np.float32)
    every[:, [0, -1]] *= end_weight
    every /= np.sqrt(n_points)
    return Features(
        every.reshape(len(every), 3 * n_points),
        np.concatenate(kept) if kept else np.zeros(0, np.int64),
        len(streamlines),
        {"not_finite": broken, "fewer_than_two_points": short, "no_length": still},
    )


def _turned(streamlines: Streamlines) -> Streamlines:
    """The streamlines with their smaller end first; for equal ends the next points decide."""
    first, last = streamlines.offsets[:-1], streamlines.offsets[1:] - 1
    backwards = np.zeros(len(first), dtype=bool)
    a, b, undecided = first, last, np.arange(len(first))
    while len(undecided):
        ahead, behind = streamlines.points[a], streamlines.points[b]
        differs = ahead != behind
        decided = differs.any(1)
        row, axis = np.arange(len(undecided)), differs.argmax(1)
        backwards[undecided[decided]] = (behind[row, axis] < ahead[row, axis])[decided]
        going = ~decided & (a + 1 < b - 1)
        undecided, a, b = undecided[going], a[going] + 1, b[going] - 1
    owners = streamlines.owners
    numbers = np.arange(len(streamlines.points))
    mirrored = (first + last)[owners] - numbers
    return Streamlines(
        streamlines.points[np.where(backwards[owners], mirrored, numbers)], streamlines.offsets
    )
