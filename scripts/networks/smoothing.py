"""Gaussian smoothing of velocities, which makes them regular by construction."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from scripts.runtime.tracing import is_followed

__all__ = ["GaussianSmoothing"]

_REACH = 4  # the kernel is cut off beyond this many standard deviations
_BAND = 36  # rows of the matrix that are multiplied at once; few rows are slow, many mostly zeros


def smoothing_matrix(n: int, sigma: float, device: torch.device) -> torch.Tensor:
    """Gaussian smoothing of n values as a matrix ``(n, n)`` whose rows sum to 1."""
    places = torch.arange(n, dtype=torch.float32, device=device)
    distance = (places[:, None] - places[None]) / sigma
    weights = torch.exp(-distance.square() / 2) * (distance.abs() <= _REACH)
    return weights / weights.sum(1, keepdim=True)


def _bands(n: int, sigma: float) -> Iterator[tuple[slice, slice]]:
    """Rows of the matrix that belong together, and the columns where they aren't 0."""
    count, reach = max(1, round(n / _BAND)), math.ceil(_REACH * sigma)
    for number in range(count):
        start, stop = n * number // count, n * (number + 1) // count
        yield slice(start, stop), slice(max(0, start - reach), min(n, stop + reach))


class GaussianSmoothing(nn.Module):
    """Smooths a field along each axis by a Gaussian whose weights sum to 1, also at the border.

    A velocity v = G w that is optimised through w has smooth gradients. An edge influences the
    voxels around it, along a tract and beside it, where the images contain no information (the
    kernel of Beg et al., IJCV 2005; SyN's update smoothing). The smoothing along an axis is one
    product with a banded matrix. That is exact at the border and faster on a CPU than a convolution
    per channel (`monai.networks.layers.GaussianFilter`, which also pulls a field to zero at the
    border).

    Args:
        sigma: standard deviation in voxels of the field's grid; 0: no smoothing.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.arguments = {"sigma": sigma}

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        """Smooth ``(B, C, *shape)``, float32."""
        if self.sigma == 0:
            return field
        with torch.autocast(field.device.type, enabled=False):
            field = field.float()
            for axis in range(2, field.dim()):
                n = field.shape[axis]
                matrix = smoothing_matrix(n, self.sigma, field.device)
                if is_followed(field):
                    bands = iter([(slice(0, n), slice(0, n))])
                else:
                    bands = _bands(n, self.sigma)
                parts = [
                    _product(field, axis, matrix[rows, columns], columns) for rows, columns in bands
                ]
                field = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
        return field.contiguous()

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"sigma={self.sigma}"


def _product(field: torch.Tensor, axis: int, matrix: torch.Tensor, columns: slice) -> torch.Tensor:
    """Rows of a smoothed field along an axis: part of the matrix times part of the field."""
    part = field.narrow(axis, columns.start, columns.stop - columns.start)
    if axis == field.dim() - 1:
        return torch.matmul(part, matrix.T)
    # Without moving the axis to the end, which copies the field twice.
    blocks = part.flatten(0, axis - 1).flatten(2)
    shape = [*field.shape[:axis], len(matrix), *field.shape[axis + 1 :]]
    return torch.bmm(matrix.expand(blocks.shape[0], -1, -1), blocks).reshape(shape)
