"""A section onto the registered grid, interpolated once."""

from __future__ import annotations

import numpy as np
import torch

from scripts.spatial.warp import sample
from scripts.stack.cropping import CropBox

__all__ = ["resample_section"]

_BAND = 1 << 20  # pixels resampled at once
_INSIDE = 1e-6  # pixels beyond the outermost centres that rounding may put a point
_MODES = {"cubic": "bicubic", "linear": "bilinear"}


def resample_section(
    values: np.ndarray,
    matrix: np.ndarray,
    box: CropBox,
    interpolation: str,
    fill: tuple[float, ...],
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Resample.

    Coordinates and sums are float64, so that a float image of any range keeps its precision. Types
    of integers are rounded and clipped: a cubic's overshoot would wrap around. Labels
    (``nearest``) are never turned into floats.

    Args:
        values: ``(rows, columns[, channels])``.
        matrix: ``(3, 3)``, ``(row, column, 1)`` of the registered grid to a pixel of the section.
        box: the pixels of the registered grid that are wanted.
        interpolation: cubic (convolution), linear or nearest.
        fill: value of each channel where the section has none.
        device: where to compute.

    Returns:
        ``(*box.shape[, channels])`` in the type of ``values``.
    """
    rows, columns = values.shape[:2]
    if np.array_equal(matrix, np.eye(3)) and box.bottom <= rows and box.right <= columns:
        return np.array(values[box.top : box.bottom, box.left : box.right])
    found = np.empty((*box.shape, *values.shape[2:]), dtype=values.dtype)
    image = None
    if interpolation != "nearest":
        stacked = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
        image = torch.from_numpy(stacked.astype(np.float64))[None].to(device)
    blank = _as_type(np.array(fill), values.dtype)
    across = np.arange(box.left, box.right, dtype=np.float64)
    step = max(1, _BAND // max(1, box.shape[1]))
    for first in range(0, box.shape[0], step):
        last = min(first + step, box.shape[0])
        down = np.arange(box.top + first, box.top + last, dtype=np.float64)[:, None]
        y = matrix[0, 0] * down + matrix[0, 1] * across + matrix[0, 2]
        x = matrix[1, 0] * down + matrix[1, 1] * across + matrix[1, 2]
        seen = (y >= -_INSIDE) & (y <= rows - 1 + _INSIDE)
        seen &= (x >= -_INSIDE) & (x <= columns - 1 + _INSIDE)
        if image is None:
            nearest = values[
                np.rint(y).clip(0, rows - 1).astype(np.intp),
                np.rint(x).clip(0, columns - 1).astype(np.intp),
            ]
        else:
            sampled = _sampled(image, x, y, _MODES[interpolation])
            nearest = _as_type(sampled[0] if values.ndim == 2 else sampled, values.dtype, True)
        inside = seen if values.ndim == 2 else seen[..., None]
        found[first:last] = np.where(inside, nearest, blank if values.ndim == 3 else blank[0])
    return found


def _sampled(image: torch.Tensor, x: np.ndarray, y: np.ndarray, mode: str) -> np.ndarray:
    """``(channels, rows, columns)``."""
    rows, columns = image.shape[2:]
    scaled = np.stack([2 * x / max(columns - 1, 1) - 1, 2 * y / max(rows - 1, 1) - 1], axis=-1)
    grid = torch.from_numpy(scaled)[None].to(image.device)
    return sample(image, grid, mode, "border")[0].cpu().numpy()


def _as_type(values: np.ndarray, dtype: np.dtype, channels_first: bool = False) -> np.ndarray:
    """Rounded and clipped for integers; channels come last."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.rint(values)
        cast = values.clip(limits.min, limits.max)
        # The largest 64-bit integers have no float64 of their own: the next one would wrap.
        cast = np.where(values >= float(limits.max), limits.max, cast.astype(dtype)).astype(dtype)
    else:
        cast = values.astype(dtype)
    return np.moveaxis(cast, 0, -1) if channels_first and cast.ndim == 3 else cast
