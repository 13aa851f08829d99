"""Overlap of where a tract is present, without a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.loss import _Loss

__all__ = ["FixedPresence", "PresenceLoss", "soft_presence"]


def soft_presence(log_density: torch.Tensor) -> torch.Tensor:
    """``x / (x + log_offset)`` of a density x, in [0, 1); 0.5 at the offset.

    With L = log1p(x / log_offset) it is 1 - exp(-L).
    """
    return -torch.expm1(-log_density)


@dataclass(frozen=True, eq=False)
class FixedPresence:
    """What the overlap needs of the fixed image alone, for several calls with that image.

    Attributes:
        presence: of each voxel.
        weight: that of each voxel, from its presence.
        cubed: sum of the cubed presences of each channel, times the weights of voxels.
    """

    presence: torch.Tensor
    weight: torch.Tensor
    cubed: torch.Tensor

    @classmethod
    def of(cls, fixed: torch.Tensor, weight: torch.Tensor | None) -> FixedPresence:
        """See `PresenceLoss.forward` for the arguments."""
        presence = soft_presence(fixed)
        cubed = presence.pow(3)
        if weight is not None:
            cubed.mul_(weight)
        spatial = tuple(range(2, fixed.dim()))
        return cls(presence, _presence_weight(presence), cubed.sum(spatial))


class _WeightedDice(torch.autograd.Function):
    """Weighted soft Dice of presences, with its gradient in the moving image in closed form.

    With S = sum(w p q), T = sum(w (p^2 + q^2)) and D = 2 S / T, the derivative at a voxel is
    dD/dp = 2 w (q - D p) / T, and dp/dL = 1 - p for a log density L. This stores only the two
    images; automatic differentiation stores eight volumes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        weight: torch.Tensor | None,
        known: FixedPresence | None,
    ) -> torch.Tensor:
        ctx.known = known
        known = known or FixedPresence.of(fixed, weight)
        p = soft_presence(moving)
        spatial = tuple(range(2, fixed.dim()))
        weighted = known.weight * p
        if weight is not None:
            weighted.mul_(weight)
        shared = 2 * (weighted * known.presence).sum(spatial)
        # On the support w q^2 is q^3; outside it q is 0.
        total = weighted.mul_(p).sum(spatial) + known.cubed
        empty = total == 0
        dice = torch.where(empty, 1.0, shared / torch.where(empty, 1.0, total))
        ctx.save_for_backward(moving, fixed, weight, dice, torch.where(empty, torch.inf, total))
        return dice

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        moving, fixed, weight, dice, total = ctx.saved_tensors
        alike = (*dice.shape, *[1] * (fixed.dim() - 2))
        p = soft_presence(moving)
        if ctx.known is None:
            q = soft_presence(fixed)
            of_presence = _presence_weight(q)
        else:
            q, of_presence = ctx.known.presence, ctx.known.weight
        slope = torch.addcmul(q, dice.view(alike), p, value=-1)
        slope.mul_(of_presence).mul_(p.neg_().add_(1))
        if weight is not None:
            slope.mul_(weight)
        return slope.mul_((2 * grad / total).view(alike)), None, None, None


def _presence_weight(presence: torch.Tensor) -> torch.Tensor:
    """The subject's presence on its support, 1 outside it."""
    return presence.masked_fill(presence <= 0, 1.0)


class PresenceLoss(_Loss):
    """Soft Dice of presence, weighted by the subject's presence on the subject's support.

    With p, q the soft presences of the warped template and of the subject, and w = q on the
    subject's support, 1 outside it,

        loss = 1 - 2 sum(w p q) / sum(w (p^2 + q^2)).

    A faint fringe of few streamlines has little weight, the body of the tract has much, and
    template outside the support has full weight: restricted to the support, the term would be a
    recall, which a template that is present everywhere maximises. Equal images give 0, disjoint
    ones 1, two empty ones 0.
    """

    def prepared(self, fixed: torch.Tensor, weight: torch.Tensor | None = None) -> FixedPresence:
        """What `forward` computes of ``fixed`` and ``weight``, for several calls with them."""
        with torch.autocast(fixed.device.type, enabled=False):
            return FixedPresence.of(fixed.float(), weight)

    def forward(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        weight: torch.Tensor | None = None,
        known: FixedPresence | None = None,
    ) -> torch.Tensor:
        """Loss of ``moving`` against ``fixed``, both ``(B, C, *shape)`` log densities.

        Only ``moving`` gets a gradient; a subject isn't learned. ``weight (B, 1, *shape)`` is that
        of each voxel, 0 to 1; None: all count. ``known`` is what `prepared` made of ``fixed`` and
        ``weight``.
        """
        with torch.autocast(moving.device.type, enabled=False):
            return 1 - _WeightedDice.apply(moving.float(), fixed.float(), weight, known).mean()
