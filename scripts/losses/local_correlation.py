"""Local normalised cross-correlation of log densities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.loss import _Loss

from scripts.losses.box import box_sum, window_size

__all__ = ["FixedWindows", "LocalCorrelationLoss", "local_correlation"]

# A window with a variance below this share of the fixed image's mean variance counts as flat. It
# is relative because an absolute epsilon is too large for densities of 1e-4 and too small for
# counts.
_FLAT = 1e-4


@dataclass(frozen=True, eq=False)
class FixedWindows:
    """What the correlation needs of the fixed image alone, for several calls with that image.

    Attributes:
        size: weight of the voxels in each window.
        share: that as a share of a whole window; None: without weights.
        weighted: the image times the weights.
        mean: of each window.
        variance: sum of squared deviations of each window; rounding may make it negative.
        flat: a variance up to this counts as none, one value per channel.
    """

    size: torch.Tensor
    share: torch.Tensor | None
    weighted: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    flat: torch.Tensor

    @classmethod
    def of(cls, fixed: torch.Tensor, window: int, weight: torch.Tensor | None) -> FixedWindows:
        """See `local_correlation` for the arguments."""
        whole = window_size(fixed, window)
        size, share, weighted = whole, None, fixed
        if weight is not None:
            share = box_sum(weight, window) / whole
            size = (share * whole).clamp_min(torch.finfo(fixed.dtype).tiny)
            weighted = fixed * weight
        mean = box_sum(weighted, window) / size
        power = box_sum(fixed * weighted, window)
        spatial = tuple(range(2, fixed.dim()))
        # The variance of a constant image is rounding error, which must not count as signal.
        rounding = 4 * torch.finfo(fixed.dtype).eps * power.amax(spatial, keepdim=True)
        variance = power.addcmul_(mean * mean, size, value=-1)
        scale = variance.clamp_min(0).mean(spatial, keepdim=True)
        filled = (variance > 0).to(variance).mean(spatial, keepdim=True)
        filled = filled.clamp_min(1.0 / variance[0, 0].numel())
        flat = torch.maximum(_FLAT * scale / filled, rounding) + torch.finfo(fixed.dtype).tiny
        return cls(size, share, weighted, mean, variance, flat)


class _MaskedLocalCorrelation(torch.autograd.Function):
    """Mean local correlation over windows with signal, with its gradient in closed form.

    Let n be the voxels in a window, S sums over it, and
    c = S_mf - S_m S_f / n, a = S_mm - S_m^2 / n, b = S_ff - S_f^2 / n, r = c / sqrt(a b).
    Then dr/dm at a voxel of the window is
    (f - S_f / n) / sqrt(a b) - r (m - S_m / n) / a,
    and the sum over the windows that contain the voxel is another box sum. This takes 3 box sums
    and 3 stored volumes; automatic differentiation takes 15 and 30.

    With weights w of the voxels, n is their sum in a window, every product in a sum is multiplied
    by w, and so is the gradient. A window counts as much as it has weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        window: int,
        weight: torch.Tensor | None,
        known: FixedWindows | None,
    ) -> torch.Tensor:
        known = known or FixedWindows.of(fixed, window, weight)
        size, share, weighted_f, mean_f = known.size, known.share, known.weighted, known.mean
        var_f, flat = known.variance, known.flat
        weighted_m = moving if weight is None else moving * weight
        mean_m = box_sum(weighted_m, window) / size
        var_m = box_sum(moving * weighted_m, window).addcmul_(mean_m * mean_m, size, value=-1)
        cross = box_sum(moving * weighted_f, window).addcmul_(mean_m * mean_f, size, value=-1)
        spatial = tuple(range(2, fixed.dim()))

        signal = (var_f > flat) | (var_m > flat)
        if share is None:
            count = signal.sum(spatial, keepdim=True).clamp_min(1).to(fixed.dtype)
        else:
            signal = signal * share
            count = signal.sum(spatial, keepdim=True)
            count = count.where(count > 0, 1.0)

        var_m = var_m.clamp_min(0) + flat
        var_f = var_f.clamp_min(0) + flat
        inverse = signal / (var_m.sqrt() * var_f.sqrt())
        r = cross * inverse
        ctx.window, ctx.count = window, count
        kept = [
            None if not needed else r / variance
            for needed, variance in zip(ctx.needs_input_grad, (var_m, var_f), strict=False)
        ]
        offsets = [
            None if slope is None else other * inverse - mean * slope
            for slope, mean, other in zip(kept, (mean_m, mean_f), (mean_f, mean_m), strict=True)
        ]
        ctx.save_for_backward(moving, fixed, weight, inverse, *kept, *offsets)
        return (r.sum(spatial, keepdim=True) / count).mean()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        moving, fixed, weight, inverse, slope_m, slope_f, offset_m, offset_f = ctx.saved_tensors
        # A mean over the entries of the batch and the channels.
        part = grad / (ctx.count * ctx.count.numel())
        if weight is not None:
            part = part * weight
        spread = box_sum(inverse, ctx.window)

        def toward(
            x: torch.Tensor, y: torch.Tensor, slope: torch.Tensor, offset: torch.Tensor
        ) -> torch.Tensor:
            result = y * spread
            result.addcmul_(x, box_sum(slope, ctx.window), value=-1)
            return result.sub_(box_sum(offset, ctx.window)).mul_(part)

        to_moving = None if slope_m is None else toward(moving, fixed, slope_m, offset_m)
        to_fixed = None if slope_f is None else toward(fixed, moving, slope_f, offset_f)
        return to_moving, to_fixed, None, None, None


def local_correlation(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    window: int = 7,
    weight: torch.Tensor | None = None,
    known: FixedWindows | None = None,
) -> torch.Tensor:
    """Mean local correlation coefficient in [-1, 1] over the windows with signal.

    Windows at the border count only voxels inside the image. Windows that are flat in both images
    (the empty background of a sparse map: three quarters of all windows) don't count. Windows that
    are flat in one image count as 0. The coefficient keeps its sign: its square can't distinguish a
    template from its negative.

    Args:
        moving: ``(B, C, *shape)`` log densities, float32 or float64 (half precision overflows).
        fixed: the same shape.
        window: odd width in voxels.
        weight: ``(B, 1, *shape)`` of the voxels, 0 to 1; the images must be finite also where it is
            0. None: all count.
        known: `FixedWindows` of the fixed image, the window and the weight; None: computed.
    """
    return _MaskedLocalCorrelation.apply(moving, fixed, window, weight, known)


class LocalCorrelationLoss(_Loss):
    """``1 - local_correlation``: 0 for equal images, 1 for unrelated ones, 2 for negatives.

    Works on log densities ``log1p(x / log_offset)``; Avants et al., Med. Image Anal. 2008.

    Args:
        window: odd width of the cubic window in voxels.
    """

    def __init__(self, window: int = 7) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3, got {window}")
        self.window = window
        self.arguments = {"window": window}

    def prepared(self, fixed: torch.Tensor, weight: torch.Tensor | None = None) -> FixedWindows:
        """What `forward` computes of ``fixed`` and ``weight``, for several calls with them."""
        with torch.autocast(fixed.device.type, enabled=False):
            return FixedWindows.of(fixed.float(), self.window, weight)

    def forward(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        weight: torch.Tensor | None = None,
        known: FixedWindows | None = None,
    ) -> torch.Tensor:
        """Loss of ``moving`` against ``fixed``, both ``(B, C, *shape)`` log densities.

        ``weight`` is that of `local_correlation`; ``known`` what `prepared` made of ``fixed`` and
        ``weight``.
        """
        with torch.autocast(moving.device.type, enabled=False):
            return 1 - local_correlation(moving.float(), fixed.float(), self.window, weight, known)
