"""Losses between a predicted displacement and the true one, by their names.

All take ``(B, d, *shape)`` float32 pixels, predicted and true, and give a scalar.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from scripts.losses.images import image_loss
from scripts.losses.smoothness import SmoothnessLoss

__all__ = [
    "AsImagesLoss",
    "ClippedDistanceLoss",
    "FoldLoss",
    "JacobianDistanceLoss",
    "MixedLoss",
    "RoughnessLoss",
    "SquaredDistanceLoss",
    "VectorDistanceLoss",
    "determinants",
    "field_loss",
]

_EPSILON = 1e-3  # square pixels under the root: the slope at 0 stays finite
_PIXELS_PER_UNIT = 10.0  # a field's components over this are compared as images
_CLIP = 20.0


def vector_distance(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean of sqrt(|d|^2 + 1e-3), d the difference of both, pixels."""
    return ((predicted - true).square().sum(1) + _EPSILON).sqrt().mean()


def determinants(displacement: torch.Tensor) -> torch.Tensor:
    """det(d(x + u(x)) / dx) by central differences, ``(B, *shape)``, with a gradient."""
    d = displacement.shape[1]
    rows = []
    for i in range(d):
        slopes = torch.gradient(displacement[:, i], dim=tuple(range(1, d + 1)))
        rows.append([slope + 1.0 if axis == i else slope for axis, slope in enumerate(slopes)])
    if d == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    (a, b, c), (p, q, r), (x, y, z) = rows
    return a * (q * z - r * y) - b * (p * z - r * x) + c * (p * y - q * x)


class VectorDistanceLoss(_Loss):
    """Mean distance between displacements: mean sqrt(|d|^2 + 1e-3), pixels."""

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        return vector_distance(predicted, true)


class ClippedDistanceLoss(_Loss):
    """``(vector distance / value)^power``: little below the value, much above it.

    Args:
        power: at least 1.
        value: pixels.
    """

    def __init__(self, power: int = 2, value: float = _CLIP) -> None:
        super().__init__()
        self.power = power
        self.value = value

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        return (vector_distance(predicted, true) / self.value) ** self.power


class SquaredDistanceLoss(_Loss):
    """Mean squared distance between displacements: mean |d|^2, square pixels."""

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        return (predicted - true).square().sum(1).mean()


class RoughnessLoss(_Loss):
    """The predicted field's `SmoothnessLoss`; the true one has no part in it."""

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted``."""
        return SmoothnessLoss([1.0] * predicted.shape[1])(predicted)


class FoldLoss(_Loss):
    """How far the predicted field folds: mean of max(0, -det J).

    It is 0 exactly where no determinant is negative, as the share of folds is, and unlike a share
    its gradient points to fewer of them.
    """

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted``."""
        return torch.relu(-determinants(predicted)).mean()


class JacobianDistanceLoss(_Loss):
    """Mean absolute difference of the determinants of both fields."""

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        return (determinants(predicted) - determinants(true)).abs().mean()


class AsImagesLoss(_Loss):
    """An image loss of each component / 10, their mean.

    Args:
        loss: of images ``(B, 1, *shape)``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        parts = [
            self.loss(p / _PIXELS_PER_UNIT, t / _PIXELS_PER_UNIT)
            for p, t in zip(predicted.split(1, 1), true.split(1, 1), strict=True)
        ]
        return torch.stack(parts).mean()


class MixedLoss(_Loss):
    """A weighted sum of losses.

    Args:
        parts: weight and loss of each.
    """

    def __init__(self, parts: list[tuple[float, nn.Module]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in parts]
        self.losses = nn.ModuleList(loss for _, loss in parts)

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``."""
        terms = [
            weight * loss(predicted, true)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(terms).sum()


def field_loss(
    name: str, spatial_dims: int, extent: float, perceptual: nn.Module | None = None
) -> nn.Module:
    """A loss of fields by its name; an image loss reads the components as images.

    Args:
        name: ``vector_distance``, ``vdclip<power>[:value]``, ``mse_po``, ``grad``, ``jacobian``,
            ``jacobian_distance``, ``mae``, ``mse``, or the name of an image loss.
        spatial_dims: 2 or 3.
        extent: of the largest displacement either way, pixels: the range of ``psnr`` and ``ssim``.
        perceptual: the network of a perceptual loss.

    Raises:
        ValueError: the loss is unknown.
    """
    losses: dict[str, type[nn.Module]] = {
        "vector_distance": VectorDistanceLoss,
        "mse_po": SquaredDistanceLoss,
        "grad": RoughnessLoss,
        "jacobian": FoldLoss,
        "jacobian_distance": JacobianDistanceLoss,
        "mae": nn.L1Loss,
        "mse": nn.MSELoss,
    }
    if name in losses:
        return losses[name]()
    clipped = re.fullmatch(r"vdclip([0-9]+)(?::([0-9.]+))?", name)
    if clipped is not None:
        return ClippedDistanceLoss(int(clipped[1]), float(clipped[2] or _CLIP))
    data_range = 2 * extent / _PIXELS_PER_UNIT
    return AsImagesLoss(image_loss(name, spatial_dims, data_range, perceptual))
