"""Smooth random fields, cheap at any smoothness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from scripts.networks.smoothing import smoothing_matrix

__all__ = ["Lengths", "smooth", "smooth_noise"]

Lengths = Sequence[float] | NDArray[np.float64]
"""A number per axis."""

_FINE = 1.5  # standard deviations, in points, at which noise is smoothed before it is enlarged


def smooth(volume: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of ``(..., X, Y, Z)`` by standard deviations in voxels, one per axis."""
    for axis, width in zip((-3, -2, -1), sigma, strict=True):
        if width > 0:
            matrix = smoothing_matrix(volume.shape[axis], width, volume.device)
            volume = torch.matmul(volume.movedim(axis, -1), matrix.T).movedim(-1, axis)
    return volume.contiguous()


def smooth_noise(
    rng: np.random.Generator, count: int, shape: Sequence[int], sigma: Sequence[float]
) -> torch.Tensor:
    """Independent smooth noises of standard deviation 1, ``(count, X, Y, Z)`` float32.

    Noise is drawn and smoothed on a grid as coarse as its smoothness allows, and enlarged.

    Args:
        rng: where the noise comes from.
        count: how many.
        shape: of the volume.
        sigma: standard deviations of the smoothing in voxels, one per axis.
    """
    factors = [max(1.0, width / _FINE) for width in sigma]
    coarse = [max(4, int(np.ceil(n / f)) + 1) for n, f in zip(shape, factors, strict=True)]
    steps = [(n - 1) / (m - 1) for n, m in zip(shape, coarse, strict=True)]
    drawn: NDArray[np.float32] = rng.standard_normal((count, *coarse), dtype=np.float32)
    noise = smooth(torch.from_numpy(drawn), [w / s for w, s in zip(sigma, steps, strict=True)])
    noise = F.interpolate(noise[None], tuple(shape), mode="trilinear", align_corners=True)[0]
    spread = noise.flatten(1).std(1).clamp_min(1e-6)
    return noise / spread.view(-1, 1, 1, 1)
