"""Streamlines in memory: one array of points, and the start of each streamline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from scripts.runtime.input_files import FileError

__all__ = ["Streamlines", "TractogramError", "resample"]


class TractogramError(FileError):
    """A tractogram, or a file that belongs to it, can't be used."""


@dataclass(frozen=True, eq=False)
class Streamlines:
    """All streamlines of a tractogram, or some of them.

    Attributes:
        points: ``(P, 3)`` float32 or float64, world millimetres (RAS).
        offsets: ``(n + 1,)`` int64; streamline i is ``points[offsets[i]:offsets[i + 1]]``.
        data: per-streamline values by name, each ``(n, k)``.
        point_data: per-point values by name, each ``(P, k)``; empty unless requested.

    Example:
        >>> two = Streamlines(np.zeros((5, 3)), np.array([0, 2, 5]))
        >>> len(two), two.lengths.tolist()
        (2, [2, 3])
    """

    points: np.ndarray
    offsets: np.ndarray
    data: dict[str, np.ndarray] = field(default_factory=dict)
    point_data: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of streamlines."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """The points of one streamline, ``(number of points, 3)``."""
        return self.points[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Number of points of each streamline, ``(n,)``."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """Number of the streamline that each point belongs to, ``(P,)`` int64."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @classmethod
    def of(
        cls, streamlines: Iterable[np.ndarray], data: dict[str, np.ndarray] | None = None
    ) -> Self:
        """Join single streamlines, each ``(points, 3)``."""
        parts = [np.asarray(one).reshape(-1, 3) for one in streamlines]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in parts], dtype=np.int64)])
        points = np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)
        return cls(points, offsets.astype(np.int64), dict(data or {}))

    @classmethod
    def join(cls, parts: Iterable[Streamlines]) -> Self:
        """One after another; values must have the same names in all."""
        every = list(parts)
        if not every:
            return cls(np.zeros((0, 3), np.float32), np.zeros(1, np.int64))
        lengths = np.concatenate([part.lengths for part in every])
        return cls(
            np.concatenate([part.points for part in every]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            {name: np.concatenate([part.data[name] for part in every]) for name in every[0].data},
            {
                name: np.concatenate([part.point_data[name] for part in every])
                for name in every[0].point_data
            },
        )

    def take(self, which: np.ndarray) -> Streamlines:
        """The streamlines with the given indices (or a boolean mask), in that order."""
        numbers = np.flatnonzero(which) if which.dtype == bool else np.asarray(which)
        lengths = self.lengths[numbers]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Shift of each selected streamline from its old place in the points to its new one.
        moves = np.repeat(self.offsets[numbers] - offsets[:-1], lengths)
        places = moves + np.arange(len(moves))
        return Streamlines(
            self.points[places],
            offsets,
            {name: values[numbers] for name, values in self.data.items()},
            {name: values[places] for name, values in self.point_data.items()},
        )

    def with_data(self, **data: np.ndarray) -> Streamlines:
        """The same streamlines with additional per-streamline values, ``(n,)`` or ``(n, k)``."""
        values = {name: np.asarray(value) for name, value in data.items()}
        shaped = {name: v[:, None] if v.ndim == 1 else v for name, v in values.items()}
        return Streamlines(self.points, self.offsets, {**self.data, **shaped}, self.point_data)


def resample(streamlines: Streamlines, n_points: int) -> np.ndarray:
    """Points at equal distances along each streamline, both ends included.

    A streamline of length 0 gives its one position ``n_points`` times, one without points NaN.

    Args:
        streamlines: with any number of points each.
        n_points: at least 2.

    Returns:
        ``(n, n_points, 3)`` float32.

    Example:
        >>> line = Streamlines.of([np.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]])])
        >>> resample(line, 3)[0, :, 0].tolist()
        [0.0, 2.0, 4.0]
    """
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, got {n_points}")
    result = np.full((len(streamlines), n_points, 3), np.nan, np.float32)
    full = np.flatnonzero(streamlines.lengths > 0)
    if not len(full):
        return result
    points = streamlines.points.astype(np.float64, copy=False)
    first, last = streamlines.offsets[full], streamlines.offsets[full + 1] - 1
    steps = np.zeros(len(points))
    steps[1:] = np.linalg.norm(np.diff(points, axis=0), axis=1)
    steps[first] = 0  # the gap between two streamlines doesn't count
    along = np.cumsum(steps)
    way = along[last] - along[first]
    wanted = along[first][:, None] + way[:, None] * np.linspace(0, 1, n_points)
    after = np.searchsorted(along, wanted.ravel(), side="right").reshape(wanted.shape)
    after = np.clip(after, np.minimum(first + 1, last)[:, None], last[:, None])
    before = np.maximum(after - 1, first[:, None])
    span = along[after] - along[before]
    share = np.divide(wanted - along[before], span, out=np.zeros_like(span), where=span > 0)
    share = np.clip(share, 0, 1)[..., None]
    result[full] = (1 - share) * points[before] + share * points[after]
    return result
