"""How rough a field is, and how far the cohort's mean field is from zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.modules.loss import _Loss

__all__ = ["CentralityLoss", "SmoothnessLoss"]


class SmoothnessLoss(_Loss):
    """Diffusion: mean over voxels of the squared gradient of a field, summed over its entries.

        mean_x sum_ij (s_i d u_i / (s_j dx_j))^2

    with voxel sizes s, so that an anisotropic grid is treated as the world sees it. Differences
    are between neighbours (MONAI's ``DiffusionLoss`` uses central ones, which a checkerboard
    passes unseen, and knows no spacing). A field u = A x gives the squared Frobenius norm of A.

    Args:
        spacing: voxel sizes in mm, one an axis; only their ratios count.
        factor: the field lives on a grid reduced by this factor, in voxels of the full one.
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

    The mean over the cohort isn't known inside a step, so a running mean is given with it; the
    gradient pulls the batch's fields against it.

    Args:
        none; the running mean is an argument of the call.
    """

    def forward(self, field: torch.Tensor, running_mean: torch.Tensor) -> torch.Tensor:
        """Loss of ``field (B, d, *shape)`` given the cohort's ``running_mean (d, *shape)``.

        Minimising ``2 <mean_batch(field), running_mean>`` in the field is minimising the squared
        length of the mean, since d|m|^2 = 2 <dm, m>; the value returned is the squared length.
        """
        mean = running_mean.detach().float()
        batch = field.float().mean(0)
        pull = 2 * (batch * mean).sum(0).mean()
        return pull - pull.detach() + mean.square().sum(0).mean()
