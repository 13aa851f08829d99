"""Whether a field brings two images closer, whatever their contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from scripts.registration.contrast import ContrastMatch, matches_better
from scripts.registration.images import WorldImage, known_of_both
from scripts.registration.similarity import PairLoss
from scripts.registration.start_field import StartField
from scripts.spatial.warp import warp

__all__ = ["NOTHING_IN_COMMON", "FieldFinder", "FieldGain", "contrast_differs", "field_gain"]

_WINDOW = 5  # voxels, of the local correlation

NOTHING_IN_COMMON = 0.98
"""One minus the correlation of two images above which they show nothing alike."""


@dataclass(frozen=True, eq=False)
class FieldGain:
    """What a field does to the similarity of two images.

    Attributes:
        matched: whether the moving image was compared in the fixed one's contrast.
        loss: one minus the local correlation, with the field.
        start_loss: the same without it.
    """

    matched: bool
    loss: float
    start_loss: float

    @property
    def helps(self) -> bool:
        """Whether the pair is more similar with the field than without."""
        return self.loss < self.start_loss


class FieldFinder(Protocol):
    """Estimates the field of a pair after an affine."""

    def __call__(
        self, fixed: WorldImage, moving: WorldImage, matrix: torch.Tensor | None = None
    ) -> tuple[StartField, FieldGain]:
        """The field on the fixed grid, which comes before the matrix, and what it gains."""
        ...


def contrast_differs(
    contrast: str, moving: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor | None = None
) -> bool:
    """Whether the moving image's contrast has to be matched before two images are compared.

    Args:
        contrast: ``same``, ``other``, or ``auto``: if that raises the correlation enough.
        moving: ``(1, 1, *shape)``.
        fixed: the same shape.
        weight: of each voxel; None: all count.
    """
    return contrast == "other" or (contrast == "auto" and matches_better(moving, fixed, weight))


@torch.no_grad()
def field_gain(
    fixed: WorldImage, moving: WorldImage, displacement: torch.Tensor, matched: bool
) -> FieldGain:
    """Compare a pair with and without a field, in the contrast that fits best with it.

    Args:
        fixed: of one channel.
        moving: of one channel, on the same grid.
        displacement: ``(1, d, *shape)`` in voxels, fixed point to moving point.
        matched: whether to match the contrast first.
    """
    loss = PairLoss(fixed, "local_correlation", _WINDOW)
    # Not zeros: where the background is bright, they would look like tissue.
    moved = warp(moving.values, displacement, padding_mode="border")
    inside = None if moving.inside is None else warp(moving.inside, displacement)
    weight = known_of_both(inside, fixed.inside)
    match = ContrastMatch.between(moved, fixed.values, weight) if matched else torch.nn.Identity()
    before = float(loss(match(moving.values), moving.inside))
    return FieldGain(matched, float(loss(match(moved), inside)), before)
