"""The group mean of affine transforms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.linalg import expm, sqrtm

__all__ = ["group_mean", "log_of"]

_ITERATIONS = 100
_NEAR, _ROOTS, _TERMS = 0.25, 60, 12  # 0.14^25 is below rounding


def log_of(matrix: np.ndarray) -> np.ndarray:
    """The real logarithm of an affine matrix.

    Takes roots until the matrix is near the identity; then log A = 2 artanh((A - I)(A + I)^-1)
    (Higham, Functions of Matrices, 2008, section 11.5). SciPy's logarithm estimates norms with
    random numbers, so two runs would differ in their last bits.

    Raises:
        ValueError: it doesn't exist (the direction of a half turn is ambiguous, for example).
    """
    eye = np.eye(len(matrix))
    root, halvings = np.asarray(matrix, dtype=np.float64), 0
    while np.isfinite(root).all() and np.abs(root - eye).sum(0).max() > _NEAR:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            square_root = sqrtm(root)
        halvings += 1
        if halvings > _ROOTS or np.abs(np.imag(square_root)).max() > 1e-8:
            root = np.full_like(root, np.nan)
            break
        root = np.real(square_root)
    if not np.isfinite(root).all():
        raise ValueError("a transform has no real logarithm: it rotates by 180 degrees, or mirrors")
    ratio = np.linalg.solve(root + eye, root - eye)
    real, power = np.zeros_like(root), ratio
    for term in range(_TERMS):
        real = real + power / (2 * term + 1)
        power = power @ ratio @ ratio
    real *= 2.0 ** (halvings + 1)
    if not np.allclose(expm(real), matrix, atol=1e-6 * max(1.0, float(np.abs(matrix).max()))):
        raise ValueError("a transform has no real logarithm whose exponential gives it back")
    return real


def group_mean(matrices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The m with ``sum_i log(m^-1 M_i) = 0``, the exponential barycentre.

    It commutes with composition on either side: if every M_i is replaced by ``M_i m^-1``, the mean
    is the identity. An average of matrices or of parameters doesn't have this property. Pennec and
    Arsigny, Exponential barycenters of the canonical Cartan connection and invariant means on Lie
    groups, 2012.

    Args:
        matrices: ``(N, 4, 4)``.

    Raises:
        ValueError: a logarithm doesn't exist, or the iteration doesn't converge: the transforms are
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
    raise ValueError("the transforms are too far apart to have a mean")
