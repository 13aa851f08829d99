"""Affine fields, warps and compositions: pure functions, and thin modules over them.

A displacement is ``(B, d, *shape)`` in pixels, channel i along axis i. The map of a displacement u
is ``x + u(x)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scripts.spatial.warp import warp

__all__ = [
    "AffineField",
    "CentredAffine",
    "FieldWarp",
    "affine_of_field",
    "compose_displacements",
    "interior",
    "warp_image",
]


@dataclass(frozen=True, eq=False)
class CentredAffine:
    """Affine maps of a grid: ``y = x + linear (x - c) + shift``, c the centre of the grid.

    Example:
        >>> import torch
        >>> move = CentredAffine(torch.zeros(1, 2, 2), torch.tensor([[1.0, -2.0]]))
        >>> move.displacement((3, 4))[0, :, 0, 0]
        tensor([ 1., -2.])

    Attributes:
        linear: ``(B, d, d)``, deviation from the identity, pixels per pixel.
        shift: ``(B, d)`` pixels.
    """

    linear: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of_parameters(cls, parameters: torch.Tensor, shape: Sequence[int]) -> CentredAffine:
        """From ``(B, d (d + 1))``: rows of [linear | shift] in units of half the extents.

        Args:
            parameters: 6 numbers in a plane, 12 in a volume; zeros are the identity.
            shape: of the grid.
        """
        d = len(shape)
        rows = parameters.view(-1, d, d + 1)
        half = torch.tensor([n / 2 for n in shape], dtype=rows.dtype, device=rows.device)
        return cls(rows[:, :, :d] * half[:, None] / half, rows[:, :, d] * half)

    def displacement(self, shape: Sequence[int]) -> torch.Tensor:
        """The displacement ``(B, d, *shape)`` on a grid."""
        d = len(shape)
        total = self.shift.view(-1, d, *[1] * d)
        for axis, n in enumerate(shape):
            line = torch.arange(n, dtype=self.shift.dtype, device=self.shift.device) - (n - 1) / 2
            line = line.view(-1, *[1] * (d - 1 - axis))
            total = total + self.linear[:, :, axis].view(-1, d, *[1] * d) * line
        return total.contiguous()

    def after(self, inner: torch.Tensor) -> torch.Tensor:
        """The displacement of this map after the one of ``inner``, exact everywhere.

        u(x) = l(x) + g(x + l(x)) = g(x) + l(x) + linear l(x).
        """
        turned = torch.einsum("bij,bj...->bi...", self.linear, inner)
        return self.displacement(inner.shape[2:]) + inner + turned

    def before(self, outer: torch.Tensor) -> torch.Tensor:
        """The displacement of the map of ``outer`` after this one; its border's value is held."""
        return compose_displacements(outer, self.displacement(outer.shape[2:]))

    def inverse(self) -> CentredAffine:
        """The inverse map.

        Raises:
            torch.linalg.LinAlgError: the map is singular.
        """
        d = self.linear.shape[1]
        eye = torch.eye(d, dtype=self.linear.dtype, device=self.linear.device)
        back = torch.linalg.inv(eye + self.linear)
        return CentredAffine(back - eye, -torch.einsum("bij,bj->bi", back, self.shift))


def affine_of_field(displacement: torch.Tensor) -> CentredAffine:
    """The affine nearest to a displacement ``(B, d, *shape)``, by least squares over its pixels."""
    shape = displacement.shape[2:]
    d = len(shape)
    # About the centre the coordinates of a full grid are uncorrelated: each slope is independent.
    columns = []
    for axis, n in enumerate(shape):
        line = torch.arange(n, dtype=displacement.dtype, device=displacement.device) - (n - 1) / 2
        others = tuple(2 + other for other in range(d) if other != axis)
        profile = displacement.mean(others) if others else displacement
        columns.append((profile * line).sum(-1) / line.square().sum().clamp_min(1e-12))
    return CentredAffine(torch.stack(columns, -1), displacement.flatten(2).mean(2))


def compose_displacements(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """``u(x) = inner(x) + outer(x + inner(x))``, outer interpolated, its border's value held.

    (With zeros outside, points that leave the grid jump back by the whole displacement.)

    Args:
        outer: comes second.
        inner: comes first.
    """
    return inner + warp(outer, inner, padding_mode="border")


def warp_image(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """``image(x + u(x))``; outside, the border's value."""
    with torch.autocast(image.device.type, enabled=False):
        return warp(image.float(), displacement.float(), padding_mode="border")


def interior(displacement: torch.Tensor, margin: int) -> torch.Tensor:
    """Where x and x + u(x) are at least ``margin`` pixels inside of the grid, ``(B, *shape)``."""
    shape = displacement.shape[2:]
    inside = torch.ones_like(displacement[:, 0], dtype=torch.bool)
    for axis, n in enumerate(shape):
        line = torch.arange(n, dtype=displacement.dtype, device=displacement.device)
        line = line.view(-1, *[1] * (len(shape) - 1 - axis))
        for place in (line, line + displacement[:, axis]):
            inside &= (place >= margin) & (place <= n - 1 - margin)
    return inside


class AffineField(nn.Module):
    """`CentredAffine` of parameters as a layer."""

    def forward(self, parameters: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The displacement ``(B, d, *shape)`` float32 of parameters ``(B, d (d + 1))``."""
        return CentredAffine.of_parameters(parameters.float(), shape).displacement(shape)


class FieldWarp(nn.Module):
    """`warp_image` as a layer."""

    def forward(self, image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        """Warp ``image (B, C, *shape)``."""
        return warp_image(image, displacement)
