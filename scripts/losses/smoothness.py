"""Roughness of a field, and distance of the cohort's mean field from zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.modules.loss import _Loss

__all__ = ["CentralityLoss", "SmoothnessLoss"]


class SmoothnessLoss(_Loss):
    """Diffusion: mean over voxels of the squared gradient of a field, summed over its entries.

        mean_x sum_ij (s_i d u_i / (s_j dx_j))^2

    with voxel sizes s, so that an anisotropic grid is measured in world units. Differences are
    between neighbours. (MONAI's ``DiffusionLoss`` uses central differences, which don't see a
    checkerboard, and ignores the spacing.) A field u = A x gives the squared Frobenius norm of A.

    Args:
        spacing: voxel sizes in mm, one per axis; only their ratios matter.
        factor: the field's grid is reduced by this factor; its values are voxels of the full one.
    """

    def __init__(self, spacing: Sequence[float], factor: int = 1) -> None:
        super().__init__()
        self.spacing = tuple(float(s) for s in spacing)
        self.factor = factor
        self.arguments = {"spacing": list(self.spacing), "factor": factor}

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        """Loss of a velocity or displacement ``(B, d, *shape)`` in voxels."""
        field = field.float()
        sizes = torch.tensor(self.spacing, device=field.device)
        world = field * sizes.view(1, -1, *([1] * (field.dim() - 2)))
        total = field.new_zeros(())
        for axis, size in enumerate(self.spacing):
            if field.shape[2 + axis] > 1:
                step = world.diff(dim=2 + axis) / (size * self.factor)
                total = total + step.square().sum(1).mean()
        return total


class CentralityLoss(_Loss):
    """Squared length of the cohort's mean field, mean over voxels, in voxels squared.

    The mean over the cohort isn't known inside a step, so a running mean is passed in. The gradient
    pulls the fields of the batch against it.

    Args:
        none; the running mean is an argument of the call.
    """

    def forward(self, field: torch.Tensor, running_mean: torch.Tensor) -> torch.Tensor:
        """Loss of ``field (B, d, *shape)`` given the cohort's ``running_mean (d, *shape)``.

        Minimising ``2 <mean_batch(field), running_mean>`` over the field minimises the squared
        length of the mean, since d|m|^2 = 2 <dm, m>; the returned value is the squared length.
        """
        mean = running_mean.detach().float()
        batch = field.float().mean(0)
        pull = 2 * (batch * mean).sum(0).mean()
        return pull - pull.detach() + mean.square().sum(0).mean()
