"""From a stationary velocity to the displacement of its flow, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import DVF2DDF
from torch import nn

from scripts.networks.warp import Warp, warp

__all__ = [
    "VelocityIntegration",
    "enlarge",
    "invert_displacement",
    "leading_block",
    "reduced_shape",
]


def reduced_shape(shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """The grid on which a field at ``1/factor`` of the resolution lives (rounded up)."""
    return tuple(-(-n // factor) for n in shape)


def enlarge(field: torch.Tensor, shape: Sequence[int], factor: int) -> torch.Tensor:
    """A field from the reduced grid onto the full one; its values are left as they are.

    A reduced voxel covers ``factor`` full ones, so its centre lies at ``factor * i +
    (factor - 1) / 2``: that is ``interpolate`` with align_corners=False. (MONAI's
    ``VoxelMorph(half_res=True)`` aligns the corners instead and is off by half a voxel.)

    Args:
        field: ``(B, C, *reduced_shape(shape, factor))``.
        shape: the full grid.
        factor: how many full voxels one reduced voxel spans along an axis.
    """
    if factor == 1:
        return field
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    full = F.interpolate(field, scale_factor=factor, mode=mode, align_corners=False)
    return leading_block(full, shape)


def leading_block(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The first ``shape`` voxels of ``(B, C, ...)``: undoes rounding up to a multiple."""
    for axis, n in enumerate(shape, start=2):
        x = x.narrow(axis, 0, n)
    return x


def invert_displacement(displacement: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """The displacement of the inverse map, by fixed-point iteration ``w(x) = -u(x + w(x))``.

    It converges where ``u`` is a contraction (Chen et al., Med. Phys. 2008), which a field that
    doesn't fold and moves gently is. Used only where no velocity is at hand (int_steps 0).

    Args:
        displacement: ``(B, d, *shape)``, voxels.
        iterations: how many steps are taken.
    """
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp(displacement, inverse, padding_mode="border")
    return inverse


class VelocityIntegration(nn.Module):
    """Scaling and squaring by MONAI's ``DVF2DDF``, at full or reduced resolution.

    Outflow at the border uses the border's value (``DVF2DDF``'s default, zeros, collapses it).

    Args:
        int_steps: squarings; 0 reads the velocity as a plain displacement.
        factor: the velocity lives on a grid reduced by this factor; its values are voxels of
            the FULL grid.
    """

    def __init__(self, int_steps: int = 7, factor: int = 1) -> None:
        super().__init__()
        self.int_steps = int_steps
        self.factor = factor
        if int_steps > 0:
            self.squaring = DVF2DDF(num_steps=int_steps, mode="bilinear", padding_mode="border")
            # DVF2DDF builds a MONAI Warp of its own; ours gives the same numbers faster.
            self.squaring.warp_layer = Warp(mode="bilinear", padding_mode="border")

    def forward(self, velocity: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Displacement ``(B, d, *shape)`` in voxels of the full grid.

        Args:
            velocity: ``(B, d, *reduced_shape(shape, factor))``, voxels of the full grid.
            shape: the full grid.
        """
        displacement = velocity
        if self.int_steps > 0:
            displacement = self.squaring(velocity / self.factor) * self.factor
        return enlarge(displacement, shape, self.factor)

    def both(
        self, velocity: torch.Tensor, shape: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and inverse displacement: the flows of ``velocity`` and of its negative.

        Without integration there is no flow to run backwards, so the displacement itself is
        inverted.
        """
        forward = self(velocity, shape)
        if self.int_steps > 0:
            return forward, self(-velocity, shape)
        return forward, invert_displacement(forward)
