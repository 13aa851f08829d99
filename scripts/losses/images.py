"""Losses between a registered image and the one that it should be, by their names.

All take ``(B, C, *shape)`` float32, predicted and true, and give a scalar that is least where both
are equal.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from monai.losses import SSIMLoss
from torch import nn
from torch.nn.modules.loss import _Loss

from scripts.losses.local_correlation import LocalCorrelationLoss

__all__ = [
    "EvenLocalCorrelationLoss",
    "PearsonLoss",
    "SignalToNoiseLoss",
    "image_loss",
]

_FLAT = 1e-4  # share of the mean variance below which a window counts as flat
_LEAST_ERROR = 1e-8  # of the range squared: equal images have 80 dB, not infinitely many


class EvenLocalCorrelationLoss(_Loss):
    """`LocalCorrelationLoss` for windows of an even width, which have no central voxel.

    1 - mean of the signed correlation coefficient over all windows with signal in either image;
    those at the border count the voxels that exist.

    Args:
        window: even width in voxels, at least 2.
    """

    def __init__(self, window: int = 12) -> None:
        super().__init__()
        if window < 2 or window % 2:
            raise ValueError(f"window must be even and at least 2, got {window}")
        self.window = window

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Loss of ``moving`` against ``fixed``."""
        mean_m, mean_f = self._means(moving), self._means(fixed)
        var_m = (self._means(moving.square()) - mean_m.square()).clamp_min(0)
        var_f = (self._means(fixed.square()) - mean_f.square()).clamp_min(0)
        cross = self._means(moving * fixed) - mean_m * mean_f
        spatial = tuple(range(2, fixed.dim()))
        flat = _FLAT * var_f.detach().mean(spatial, keepdim=True) + 1e-8
        signal = ((var_f > flat) | (var_m > flat)).to(cross)
        r = cross / ((var_m + flat).sqrt() * (var_f + flat).sqrt())
        count = signal.sum(spatial).clamp_min(1)
        return 1 - ((r * signal).sum(spatial) / count).mean()

    def _means(self, x: torch.Tensor) -> torch.Tensor:
        """Means over all windows that touch the image, ``(B, C, *(n + 1))``, axis by axis."""
        pool = F.avg_pool3d if x.dim() == 5 else F.avg_pool2d
        for axis in range(x.dim() - 2):
            width = [self.window if other == axis else 1 for other in range(x.dim() - 2)]
            reach = [self.window // 2 if other == axis else 0 for other in range(x.dim() - 2)]
            x = pool(x, width, stride=1, padding=reach, count_include_pad=False)
        return x


class PearsonLoss(_Loss):
    """1 - Pearson's correlation of each image's channels, their mean; constant images count 1."""

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        x, y = predicted.flatten(2), true.flatten(2)
        x, y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
        # Beneath the root: at a constant image a root of 0 would have an infinite slope.
        power = (x.square().sum(2) + 1e-12) * (y.square().sum(2) + 1e-12)
        return (1 - (x * y).sum(2) / power.sqrt()).mean()


class SignalToNoiseLoss(_Loss):
    """Minus the peak signal-to-noise ratio, in decibels, mean over the images.

    Args:
        data_range: of the values.
    """

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__()
        self.data_range = data_range

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        share = (predicted - true).square().flatten(1).mean(1) / self.data_range**2
        return 10 * (share + _LEAST_ERROR).log10().mean()


def image_loss(
    name: str,
    spatial_dims: int,
    data_range: float = 1.0,
    perceptual: nn.Module | None = None,
) -> nn.Module:
    """A loss of images by its name.

    Args:
        name: ``mae``, ``mse``, ``ncc_<window>``, ``pearson``, ``psnr``, ``ssim`` or
            ``perceptual_loss_...``.
        spatial_dims: 2 or 3.
        data_range: largest minus least value, for ``psnr`` and ``ssim``.
        perceptual: the network of a perceptual loss.

    Raises:
        ValueError: the loss is unknown, or a perceptual one without its network.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 1, 24, 24)
        >>> abs(float(image_loss("pearson", 2)(image, 2 * image + 1))) < 1e-4
        True
    """
    if name == "mae":
        return nn.L1Loss()
    if name == "mse":
        return nn.MSELoss()
    if name == "pearson":
        return PearsonLoss()
    if name == "psnr":
        return SignalToNoiseLoss(data_range)
    if name == "ssim":
        return SSIMLoss(spatial_dims, data_range=data_range)
    if (match := re.fullmatch(r"ncc_([0-9]+)", name)) is not None:
        window = int(match[1])
        return LocalCorrelationLoss(window) if window % 2 else EvenLocalCorrelationLoss(window)
    if name.startswith("perceptual_loss_"):
        if perceptual is None:
            raise ValueError(f"{name} needs its network")
        return perceptual
    raise ValueError(f"{name!r} is not a loss of an image")
