"""Gaussian smoothing of velocities, which makes them regular by construction."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["GaussianSmoothing"]

_REACH = 4  # the kernel is cut off beyond this many standard deviations


def smoothing_matrix(n: int, sigma: float, device: torch.device) -> torch.Tensor:
    """Gaussian smoothing of n values as a matrix ``(n, n)`` whose rows sum to 1."""
    places = torch.arange(n, dtype=torch.float32, device=device)
    distance = (places[:, None] - places[None]) / sigma
    weights = torch.exp(-distance.square() / 2) * (distance.abs() <= _REACH)
    return weights / weights.sum(1, keepdim=True)


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
                shape = field.shape
                matrix = smoothing_matrix(shape[axis], self.sigma, field.device)
                if axis == field.dim() - 1:
                    field = torch.matmul(field, matrix.T)
                    continue
                # Without moving the axis to the end, which copies the field twice.
                blocks = field.flatten(0, axis - 1).flatten(2)
                field = torch.bmm(matrix.expand(blocks.shape[0], -1, -1), blocks).reshape(shape)
        return field.contiguous()

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"sigma={self.sigma}"
