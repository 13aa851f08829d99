"""Numbers of a tract: scalar images under a weighted map, and how much of it a mask covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["covered_share", "weighted_statistics"]


def weighted_statistics(
    values: np.ndarray, weights: np.ndarray, percentiles: Sequence[float] = ()
) -> dict[str, float | None]:
    """Mean, standard deviation, median and percentiles of values with weights.

    A value that isn't finite doesn't count. The percentile p is the smallest value at which the
    weights of the values up to it reach p per cent of all weights.

    Args:
        values: ``(N,)``.
        weights: ``(N,)``, >= 0.
        percentiles: per cent, each from 0 to 100.

    Returns:
        ``mean``, ``sd`` (of the population), ``median``, ``p<percentile>``; None where the weights
        sum to 0.

    Example:
        >>> weighted_statistics(np.array([1.0, 2.0, 9.0]), np.array([2.0, 2.0, 0.0]))["mean"]
        1.5
    """
    names = {"median": 50.0, **{f"p{p:g}": float(p) for p in percentiles}}
    used = np.isfinite(values) & (weights > 0)
    values, weights = values[used].astype(np.float64), weights[used].astype(np.float64)
    total = weights.sum()
    if not total > 0:
        return dict.fromkeys(("mean", "sd", *names))
    mean = float((weights * values).sum() / total)
    variance = float((weights * (values - mean) ** 2).sum() / total)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    # A little below: sums of floats may miss the exact share by rounding.
    wanted = np.array(list(names.values())) / 100 * reached[-1] * (1 - 1e-12)
    places = np.minimum(np.searchsorted(reached, wanted), len(order) - 1)
    quantiles = values[order][places]
    return {
        "mean": mean,
        "sd": variance**0.5,
        **dict(zip(names, map(float, quantiles), strict=True)),
    }


def covered_share(mask: np.ndarray, weights: np.ndarray) -> float | None:
    """Share of the weights that lie inside a mask; None where the weights sum to 0.

    Example:
        >>> covered_share(np.array([True, False]), np.array([1.0, 3.0]))
        0.25
    """
    total = float(weights.sum(dtype=np.float64))
    return float(weights[mask].sum(dtype=np.float64)) / total if total > 0 else None
