"""The mean of affine transforms, in the sense of their group."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.linalg import expm, logm

__all__ = ["group_mean", "log_of"]

_ITERATIONS = 100


def log_of(matrix: np.ndarray) -> np.ndarray:
    """The real logarithm of an affine matrix: the velocity of the straight way to it.

    Raises:
        ValueError: there is none (a half turn, say, may go either way round).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = logm(np.asarray(matrix, dtype=np.float64))
    real = np.real(found)
    if not np.isfinite(real).all() or np.abs(np.imag(found)).max() > 1e-8:
        raise ValueError("a transform has no real logarithm: it turns by 180 degrees, or mirrors")
    if not np.allclose(expm(real), matrix, atol=1e-6 * max(1.0, float(np.abs(matrix).max()))):
        raise ValueError("a transform has no real logarithm that leads back to it")
    return real


def group_mean(matrices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The m with ``sum_i log(m^-1 M_i) = 0``, the exponential barycentre.

    It commutes with composition on either side: with every M_i replaced by ``M_i m^-1`` the mean
    is the identity, which an average of matrices or of parameters doesn't give. Pennec and
    Arsigny, Exponential barycenters of the canonical Cartan connection and invariant means on
    Lie groups, 2012.

    Args:
        matrices: ``(N, 4, 4)``.

    Raises:
        ValueError: a logarithm doesn't exist, or the iteration doesn't settle: the transforms lie
            too far apart (rotations of more than 90 degrees from their mean).
    """
    all_of_them = [np.asarray(matrix, dtype=np.float64) for matrix in matrices]
    mean = all_of_them[0].copy()
    for _ in range(_ITERATIONS):
        inverse = np.linalg.inv(mean)
        step = np.mean([log_of(inverse @ matrix) for matrix in all_of_them], axis=0)
        mean = mean @ expm(step)
        if float(np.abs(step).max()) < 1e-12 * max(1.0, float(np.abs(mean).max())):
            return mean
    if float(np.abs(step).max()) < 1e-8 * max(1.0, float(np.abs(mean).max())):
        return mean
    raise ValueError("the transforms lie too far apart to have a mean")
