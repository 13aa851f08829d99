"""Sharpness of a template."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def entropy_focus_criterion(image: ArrayLike, mask: NDArray[np.bool_] | None = None) -> float:
    """Entropy focus criterion of a non-negative image; lower is sharper.

    p = x / sqrt(sum x^2), E = -sum p ln p, divided by its value sqrt(N) ln sqrt(N) for an image of
    N equal voxels (Atkinson et al. 1997, IEEE TMI 16(6); as MRIQC normalises it).

    Args:
        image: any shape, >= 0.
        mask: voxels that count (default: all); N is their number.

    Returns:
        A value in [0, 1]; 0.0 for an empty image or a single voxel.

    Raises:
        ValueError: a voxel is negative.
    """
    x = np.asarray(image, dtype=np.float64)
    x = x.ravel() if mask is None else x[mask]
    if (x < 0).any():
        raise ValueError(f"the entropy focus criterion needs values >= 0, the least is {x.min()}")
    energy = np.sqrt((x**2).sum())
    if energy == 0 or x.size < 2:
        return 0.0
    p = x[x > 0] / energy
    most = np.sqrt(x.size) * np.log(np.sqrt(x.size))
    return float(max(0.0, -(p * np.log(p)).sum() / most))


def gradient_magnitude(
    image: ArrayLike, support: NDArray[np.bool_], spacing: float | tuple[float, ...] = 1.0
) -> float:
    """Mean magnitude of the gradient inside a support (central differences, units per mm)."""
    x = np.asarray(image, dtype=np.float64)
    if support.shape != x.shape:
        raise ValueError(f"support {support.shape} and image {x.shape} differ in shape")
    if not support.any():
        return 0.0
    steps = spacing if isinstance(spacing, tuple) else (spacing,) * x.ndim
    slopes = np.gradient(x, *steps)
    square = slopes**2 if x.ndim == 1 else np.sum([slope**2 for slope in slopes], axis=0)
    return float(np.sqrt(square[support]).mean())


def gradient_ratio(
    template: ArrayLike,
    subjects: Iterable[ArrayLike],
    support: NDArray[np.bool_] | None = None,
    spacing: float | tuple[float, ...] = 1.0,
) -> float:
    """Gradient of the template relative to that of single subjects; 1 is as sharp as a subject.

    Mean gradient magnitude of the template inside ``support`` (default: template > 0), divided by
    the mean of the same number over the subjects, each inside ``support`` (default: subject > 0).

    Raises:
        ValueError: there is no subject.
    """
    image = np.asarray(template)
    where = image > 0 if support is None else support
    singles = []
    for subject in subjects:
        one = np.asarray(subject)
        singles.append(gradient_magnitude(one, one > 0 if support is None else support, spacing))
    if not singles:
        raise ValueError("the gradient ratio needs at least one subject")
    single = float(np.mean(singles))
    return gradient_magnitude(image, where, spacing) / single if single else 0.0
