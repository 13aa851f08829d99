"""Similarity of a warped image and the fixed one: the loss of a registration."""

from __future__ import annotations

import torch

from scripts.losses.local_correlation import LocalCorrelationLoss
from scripts.registration.images import WorldImage, known_of_both

__all__ = ["SIMILARITIES", "PairLoss", "correlation_loss"]

SIMILARITIES = ("correlation", "local_correlation")
_LEAST_OVERLAP = 0.25  # of the fixed image; with less, any two images can be made to match


def correlation_loss(
    moved: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus Pearson's correlation, 0 for equal images up to gain and offset; ``(B,)``.

    Constant images have no correlation: it counts as 0, without a gradient.

    Args:
        moved: ``(B, C, *shape)``; the result is the mean over the channels.
        fixed: the same shape, or a batch of one.
        weight: ``(B, 1, *shape)`` of the voxels; None: all count.
    """
    moved, fixed = moved.flatten(2), fixed.flatten(2)
    weight = torch.ones_like(moved[:1, :1]) if weight is None else weight.flatten(2)
    total = weight.sum(2, keepdim=True).clamp_min(1e-6)
    away_m = moved - (moved * weight).sum(2, keepdim=True) / total
    away_f = fixed - (fixed * weight).sum(2, keepdim=True) / total
    var_m = (weight * away_m.square()).sum(2) / total[:, :, 0]
    var_f = (weight * away_f.square()).sum(2) / total[:, :, 0]
    cross = (weight * away_m * away_f).sum(2) / total[:, :, 0]
    power = (moved.detach().square().mean(2), fixed.square().mean(2))
    flat = [v <= 1e-10 * p + 1e-30 for v, p in zip((var_m, var_f), power, strict=True)]
    none = flat[0] | flat[1]
    below = torch.where(none, torch.ones_like(cross), var_m * var_f)
    r = torch.where(none, torch.zeros_like(cross), cross / below.sqrt())
    return 1 - r.mean(1)


class PairLoss:
    """The loss of warped images against one fixed image, one number per entry of the batch.

    Args:
        fixed: the fixed image.
        similarity: one of `SIMILARITIES`.
        window: of the local correlation, voxels.
    """

    def __init__(self, fixed: WorldImage, similarity: str = "correlation", window: int = 5) -> None:
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}"
            )
        self.fixed = fixed
        self.local = LocalCorrelationLoss(window) if similarity == "local_correlation" else None

    def __call__(
        self,
        moved: torch.Tensor,
        covered: torch.Tensor | None = None,
        counted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``(B,)`` losses in [0, 2].

        Args:
            moved: ``(B, C, *shape)`` on the fixed grid.
            covered: ``(B, 1, *shape)``, the share of each voxel that the moving image covers; None
                if the outside is background.
            counted: ``(B or 1, 1, *shape)`` bool, voxels outside of masks; None: all.
        """
        if counted is not None:
            return self._of_counted(moved, covered, counted)
        fixed = self.fixed.values
        weight = known_of_both(covered, self.fixed.inside)
        if self.local is None:
            loss = correlation_loss(moved, fixed, weight)
        else:
            # Where either is unknown, both are set to 0: flat windows, which don't count.
            mask = 1.0 if weight is None else weight
            pair = (moved * mask, (fixed * mask).expand_as(moved))
            loss = torch.stack(
                [self.local(pair[0][b : b + 1], pair[1][b : b + 1]) for b in range(len(moved))]
            )
        return loss if weight is None else self._with_overlap(loss, weight)

    def _of_counted(
        self, moved: torch.Tensor, covered: torch.Tensor | None, counted: torch.Tensor
    ) -> torch.Tensor:
        """The loss over voxels outside of masks; the others are left out of every window."""
        known = self.fixed.inside
        shares = [one for one in (covered, known) if one is not None]
        weight = counted.to(moved).expand(len(moved), -1, *moved.shape[2:])
        for one in shares:
            weight = weight * one
        moved, fixed = moved.where(counted, 0), self.fixed.values.where(counted, 0)
        fixed = fixed.expand_as(moved)
        if self.local is None:
            loss = correlation_loss(moved, fixed, weight)
        else:
            loss = torch.stack(
                [
                    self.local(moved[b : b + 1], fixed[b : b + 1], weight[b : b + 1])
                    for b in range(len(moved))
                ]
            )
        return loss if not shares else self._with_overlap(loss, weight)

    def _with_overlap(self, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The loss, raised where the images hardly overlap."""
        known = self.fixed.inside
        share = weight.flatten(1).mean(1) / (1.0 if known is None else float(known.mean()))
        lacking = (_LEAST_OVERLAP - share).clamp_min(0) / _LEAST_OVERLAP
        return loss + lacking * (2 - loss.detach()).clamp_min(0)
