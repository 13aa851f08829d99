"""A section onto the registered grid, interpolated once."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from scripts.stack.cropping import CropBox

__all__ = ["resample_section"]

_BAND = 1 << 18  # pixels whose places are computed at once
_INSIDE = 1e-6  # pixels beyond the outermost centres that rounding may put a point
_ORDERS = {"cubic": 3, "linear": 1}


def resample_section(
    values: np.ndarray,
    matrix: np.ndarray,
    box: CropBox,
    interpolation: str,
    fill: tuple[float, ...],
) -> np.ndarray:
    """Resample.

    Sums are float64, so that an image of any range keeps its precision. Types of integers are
    rounded and clipped: a cubic's overshoot would wrap around. Labels (``nearest``) are never
    turned into floats.

    Args:
        values: ``(rows, columns[, channels])``.
        matrix: ``(3, 3)``, ``(row, column, 1)`` of the registered grid to a pixel of the section.
        box: the pixels of the registered grid that are wanted.
        interpolation: cubic (B-spline, as ITK's), linear or nearest.
        fill: value of each channel where the section has none.

    Returns:
        ``(*box.shape[, channels])`` in the type of ``values``.
    """
    rows, columns = values.shape[:2]
    if np.array_equal(matrix, np.eye(3)) and box.bottom <= rows and box.right <= columns:
        return np.array(values[box.top : box.bottom, box.left : box.right])
    channels = values[..., None] if values.ndim == 2 else values
    resampled = np.empty((*box.shape, channels.shape[2]), dtype=values.dtype)
    if interpolation != "nearest":
        start = matrix @ np.array([box.top, box.left, 1.0])
        for channel in range(channels.shape[2]):
            smooth = ndimage.affine_transform(
                channels[..., channel].astype(np.float64), matrix[:2, :2], start[:2], box.shape,
                order=_ORDERS[interpolation], mode="mirror",
            )  # fmt: skip
            resampled[..., channel] = _as_type(smooth, values.dtype)
    blank = _as_type(np.array(fill, dtype=np.float64), values.dtype)
    across = np.arange(box.left, box.right, dtype=np.float64)
    step = max(1, _BAND // max(1, box.shape[1]))
    for first in range(0, box.shape[0], step):
        last = min(first + step, box.shape[0])
        down = np.arange(box.top + first, box.top + last, dtype=np.float64)[:, None]
        y = matrix[0, 0] * down + matrix[0, 1] * across + matrix[0, 2]
        x = matrix[1, 0] * down + matrix[1, 1] * across + matrix[1, 2]
        if interpolation == "nearest":
            resampled[first:last] = channels[
                np.rint(y).clip(0, rows - 1).astype(np.intp),
                np.rint(x).clip(0, columns - 1).astype(np.intp),
            ]
        outside = (y < -_INSIDE) | (y > rows - 1 + _INSIDE)
        outside |= (x < -_INSIDE) | (x > columns - 1 + _INSIDE)
        resampled[first:last][outside] = blank
    return resampled[..., 0] if values.ndim == 2 else resampled


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clipped for integers."""
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    rounded = np.rint(values)
    # The largest 64-bit integers are not float64 numbers: the next one would wrap.
    top = rounded >= float(limits.max)
    cast = np.where(top, 0, rounded.clip(limits.min, None)).astype(dtype)
    cast[top] = limits.max
    return cast
