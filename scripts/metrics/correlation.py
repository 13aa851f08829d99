"""Pearson's correlation, and that of density maps on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pearson(first: ArrayLike, second: ArrayLike) -> float | None:
    """Pearson's correlation of two arrays of one shape, computed in float64.

    Example:
        >>> round(pearson([1, 2, 3], [10, 20, 30]), 6)
        1.0
        >>> pearson([1, 2, 3], [5, 5, 5]) is None
        True

    Args:
        first: any shape.
        second: the same shape.

    Returns:
        A value in [-1, 1]; None if it isn't defined: fewer than two entries, an array that is
        constant, or an entry that isn't finite.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = (np.asarray(one, dtype=np.float64) for one in (first, second))
    if x.shape != y.shape:
        raise ValueError(f"correlation needs arrays of one shape, got {[x.shape, y.shape]}")
    if x.size < 2 or not all(0 < np.ptp(one) < np.inf for one in (x, y)):
        return None
    return float(np.clip(np.corrcoef(x.ravel(), y.ravel())[0, 1], -1, 1))


def log_density_correlation(
    first: ArrayLike,
    second: ArrayLike,
    offset: float,
    support: NDArray[np.bool_] | None = None,
) -> float:
    """Pearson's correlation of log1p(x / offset) of two density maps of one shape.

    Args:
        first: density, >= 0.
        second: density, >= 0.
        offset: density that counts as small (x0), in the units of the maps, > 0.
        support: voxels to compare; by default those where either map is above 0. The subject's
            support (``subject > 0``) measures how well an atlas explains that subject.

    Returns:
        A value in [-1, 1]; 0.0 if a map is constant on the support, or the support is empty.

    Raises:
        ValueError: shapes differ, or the offset isn't positive.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or (support is not None and support.shape != a.shape):
        given = [a.shape, b.shape] + ([] if support is None else [support.shape])
        raise ValueError(f"correlation needs arrays of one shape, got {given}")
    if not offset > 0:
        raise ValueError(f"the offset of a log density must be > 0, got {offset}")
    where = ((a > 0) | (b > 0)) if support is None else support
    x, y = (np.log1p(m[where].astype(np.float64) / offset) for m in (a, b))
    return pearson(x, y) or 0.0


def pairwise_correlation(
    maps: Sequence[ArrayLike], offset: float, support: NDArray[np.bool_] | None = None
) -> float:
    """Mean :func:`log_density_correlation` over all pairs of at least two density maps."""
    if len(maps) < 2:
        raise ValueError(f"pairwise correlation needs at least 2 maps, got {len(maps)}")
    pairs = combinations(maps, 2)
    return float(np.mean([log_density_correlation(a, b, offset, support) for a, b in pairs]))
