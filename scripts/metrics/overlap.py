"""Overlap of binary maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dice(first: ArrayLike, second: ArrayLike) -> float:
    """Dice's coefficient 2 |A and B| / (|A| + |B|) of two binary arrays of one shape.

    Returns:
        A value in [0, 1]; 1.0 when both are empty.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"Dice needs two arrays of one shape, got {a.shape} and {b.shape}")
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    if total == 0:
        return 1.0
    return 2 * int(np.count_nonzero(a & b)) / total


def pairwise_dice(maps: Sequence[ArrayLike] | NDArray[np.bool_]) -> float:
    """Mean Dice over all pairs of at least two binary maps (N, ...)."""
    if len(maps) < 2:
        raise ValueError(f"pairwise Dice needs at least 2 maps, got {len(maps)}")
    # One matrix product counts all intersections at once.
    flat = np.stack([np.asarray(m, dtype=bool).ravel() for m in maps])
    flat = flat[:, flat.any(0)].astype(np.float32)
    shared, sizes = flat @ flat.T, flat.sum(1)
    return float(
        np.mean(
            [
                1.0 if sizes[i] + sizes[j] == 0 else 2 * shared[i, j] / (sizes[i] + sizes[j])
                for i, j in combinations(range(len(flat)), 2)
            ]
        )
    )


def core_share(probability: ArrayLike, low: float = 10.0, high: float = 90.0) -> float:
    """Volume of p >= high over the volume of p >= low, p in per cent; 0 without p >= low."""
    p = np.asarray(probability)
    outer = int(np.count_nonzero(p >= low))
    return int(np.count_nonzero(p >= high)) / outer if outer else 0.0
