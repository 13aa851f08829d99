"""An image converted to the contrast of another one that overlaps it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["CONTRASTS", "ContrastMatch", "matches_better", "similarities"]

CONTRASTS = ("auto", "same", "other")
_LEVELS = 32
_HIGH = 0.999  # quantile of the moving image that is the highest level
_LEAST = 1.0  # voxels at a level, below which its neighbours decide
_GAIN = 0.15  # of the correlation, from which on two images count as of different contrast


@dataclass(frozen=True, eq=False)
class ContrastMatch:
    """The mean of the fixed image at each intensity of the moving one, between which it is linear.

    That is the best prediction of the fixed image from the moving one's intensities (the
    regression that Roche et al.'s correlation ratio measures, MICCAI 1998). The images need to be
    only roughly aligned: a wrong neighbour pulls each mean towards the mean of all,
    which lowers the contrast but doesn't invert it.

    Attributes:
        low: intensity of the first level.
        high: intensity of the last level.
        means: ``(L,)``.
    """

    low: float
    high: float
    means: torch.Tensor

    @classmethod
    def between(
        cls, moved: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor | None = None
    ) -> ContrastMatch:
        """The relation of two images of one shape.

        Args:
            moved: the moving image on the fixed grid. fixed: the fixed image. weight: of each
                voxel, not negative; None: all count.
        """
        values = moved.flatten().float()
        counted = torch.ones_like(values) if weight is None else weight.flatten().float()
        step = max(1, len(values) // 1_000_000)  # quantile takes no more than 16 million
        low = float(values.amin())
        high = float(torch.quantile(values[::step], _HIGH))
        if not high > low:
            high = float(values.amax())
        if not high > low:
            high = low + 1.0
        index, part = cls._levels(values, low, high)
        sums, sizes = values.new_zeros(_LEVELS), values.new_zeros(_LEVELS)
        target = fixed.flatten().float()
        for where, share in ((index, 1 - part), (index + 1, part)):
            sums.index_add_(0, where, share * counted * target)
            sizes.index_add_(0, where, share * counted)
        known = (sizes > _LEAST).cpu().numpy()
        if not known.any():
            return cls(low, high, torch.zeros_like(sums))
        means = (sums / sizes.clamp_min(1e-6)).cpu().numpy()
        levels = np.arange(_LEVELS)
        filled = np.interp(levels, levels[known], means[known]).astype(np.float32)
        return cls(low, high, torch.from_numpy(filled).to(sums))

    @staticmethod
    def _levels(values: torch.Tensor, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
        place = ((values - low) / (high - low)).clamp(0, 1) * (_LEVELS - 1)
        index = place.floor().long().clamp(0, _LEVELS - 2)
        return index, place - index

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """An image in the fixed one's contrast, of the same shape."""
        index, part = self._levels(image.float(), self.low, self.high)
        return torch.lerp(self.means[index], self.means[index + 1], part)


def matches_better(
    moved: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor | None = None
) -> bool:
    """Whether two images differ in contrast: their correlation rises by more than .15 if matched.

    Args:
        moved: the moving image, as it lies.
        fixed: the fixed image, of the same shape.
        weight: of each voxel; None: all count.
    """
    matched = ContrastMatch.between(moved, fixed, weight)(moved)
    return _correlation(matched, fixed, weight) > _correlation(moved, fixed, weight) + _GAIN


def similarities(
    before: torch.Tensor, after: torch.Tensor, fixed: torch.Tensor
) -> tuple[float, float]:
    """Correlation of two versions of the moving image with the fixed one, for comparison.

    If either version differs from the fixed image in contrast, each is matched to it first.

    Args:
        before: the moving image as it was.
        after: the moving image as a transform warped it.
        fixed: the fixed image, of the same shape.
    """
    both = [before, after]
    if any(matches_better(one, fixed) for one in both):
        both = [ContrastMatch.between(one, fixed)(one) for one in both]
    first, second = (_correlation(one, fixed, None) for one in both)
    return first, second


def _correlation(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor | None) -> float:
    w = torch.ones_like(one).flatten() if weight is None else weight.flatten()
    a, b = one.flatten(), other.flatten()
    total = w.sum().clamp_min(1e-6)
    a, b = a - (w * a).sum() / total, b - (w * b).sum() / total
    power = (w * a.square()).sum() * (w * b.square()).sum()
    return float((w * a * b).sum() / power.sqrt()) if float(power) > 0 else 0.0
