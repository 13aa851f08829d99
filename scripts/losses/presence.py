"""Overlap of where a tract is present, without a threshold."""

from __future__ import annotations

import torch
from torch.nn.modules.loss import _Loss

__all__ = ["PresenceLoss", "soft_presence"]


def soft_presence(log_density: torch.Tensor) -> torch.Tensor:
    """``x / (x + log_offset)`` of a density x, in [0, 1): half at the offset itself.

    With L = log1p(x / log_offset) it is 1 - exp(-L).
    """
    return -torch.expm1(-log_density)


class PresenceLoss(_Loss):
    """Soft Dice of presence, weighted by the subject's presence on its own support.

    With p, q the soft presences of the warped template and of the subject, and w = q on the
    subject's support, 1 off it,

        loss = 1 - 2 sum(w p q) / sum(w (p^2 + q^2)).

    A faint fringe of few streamlines weighs little, the tract's body much, and template that
    spills outside the support costs in full: restricted to the support alone the term would be
    a recall, blind to a template that is present everywhere. Equal images give 0, disjoint
    ones 1; two empty ones 0.
    """

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Loss of ``moving`` against ``fixed``, both ``(B, C, *shape)`` log densities."""
        with torch.autocast(moving.device.type, enabled=False):
            p, q = soft_presence(moving.float()), soft_presence(fixed.float())
            weight = torch.where(q > 0, q, torch.ones_like(q))
            spatial = tuple(range(2, fixed.dim()))
            shared = 2 * (weight * p * q).sum(spatial)
            total = (weight * (p * p + q * q)).sum(spatial)
            empty = total == 0
            dice = torch.where(empty, 1.0, shared / torch.where(empty, 1.0, total))
            return 1 - dice.mean()
