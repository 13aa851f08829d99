"""What a registration network is shown of a pair of images."""

from __future__ import annotations

import math

import torch
from torch import nn

from scripts.networks.smoothing import GaussianSmoothing
from scripts.runtime.tracing import is_recorded

__all__ = ["INPUTS", "PairForces"]

INPUTS = ("images", "forces")
"""What a network is shown: both images, or what `PairForces` makes of them."""

_SCALES = (1.5, 3.0)  # voxels, of the smoothed copies that forces are taken from
_SLAB = 1 << 17  # voxels
_FLOOR = 1e-4  # keeps flat regions, whose variance or gradient is rounding, at 0


class PairForces(nn.Module):
    """Both images, locally normalised copies of them, and the moves that their edges suggest.

    A plain U-Net has to learn from nothing how two edges are matched. Given the forces of demons
    registration, it has to learn only when to believe them, and that holds for images that it has
    never seen. Locally normalised copies make images of different brightness, bias and contrast
    look alike. Channels of ``(B, 13, *shape)``:

    | channels | what |
    |---|---|
    | 0, 1 | moving m, fixed f |
    | 2, 3 | both normalised: (x - Gx) / sqrt(max(G x^2 - (Gx)^2, 0) + 1e-4), G of 3 voxels |
    | 4-6 | force of m and f: 2 d g / (g^2 + d^2 + 1e-4), d = f - m, g the mean gradient |
    | 7-9, 10-12 | the same of the normalised pair, smoothed by 1.5 and by 3 voxels |

    (In a plane there are two components a force, and 10 channels.) The force is the step, in
    voxels, that first-order matching takes; Thirion, Medical Image Analysis 1998, in the symmetric
    form of Vercauteren et al., NeuroImage 2009.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = GaussianSmoothing(3.0)
        self.scales = nn.ModuleList(GaussianSmoothing(sigma) for sigma in _SCALES)

    @staticmethod
    def channels(spatial_dims: int) -> int:
        """How many channels the network sees."""
        return 4 + (1 + len(_SCALES)) * spatial_dims

    def copies(self, image: torch.Tensor) -> torch.Tensor:
        """An image, its normalised copy, and that smoothed: ``(B, 1, *shape)`` to ``(B, 4, ...)``.

        A fixed image's copies are made once for all passes at a resolution.
        """
        image = image.float()
        mean, power = self.window(torch.cat([image, image.square()], 1)).split(1, 1)
        spread = (power - mean.square()).clamp_min(0).add(_FLOOR).sqrt()
        normalised = (image - mean) / spread
        return torch.cat([image, normalised, *(smooth(normalised) for smooth in self.scales)], 1)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The network's input, from the `copies` of both images.

        Made slab by slab along the first axis, so that what lies between stays in the cache; in
        the order in memory that convolutions want.
        """
        followed = torch.is_grad_enabled() and (moving.requires_grad or fixed.requires_grad)
        if followed or is_recorded():  # a recorded program knows no slabs: its sizes may differ
            return torch.stack(self._of_slab(moving, fixed), 1)
        batch, _, n, *rest = moving.shape
        result = torch.empty(
            (batch, self.channels(1 + len(rest)), n, *rest),
            dtype=moving.dtype,
            device=moving.device,
            memory_format=torch.channels_last_3d if len(rest) == 2 else torch.contiguous_format,
        )
        size = max(1, _SLAB // math.prod(rest))
        for start in range(0, n, size):
            stop = min(start + size, n)
            before, after = max(0, start - 1), min(n, stop + 1)  # a slope takes both neighbours
            slab = slice(before, after)
            made = self._of_slab(moving[:, :, slab], fixed[:, :, slab])
            for channel, values in enumerate(made):
                result[:, channel, start:stop] = values[:, start - before : stop - before]
        return result

    @staticmethod
    def _of_slab(moving: torch.Tensor, fixed: torch.Tensor) -> list[torch.Tensor]:
        """The channels one by one, each ``(B, *shape)``."""
        made = [moving[:, 0], fixed[:, 0], moving[:, 1], fixed[:, 1]]
        for copy in (0, *range(2, moving.shape[1])):
            one, other = moving[:, copy], fixed[:, copy]
            difference, middle = other - one, (other + one) / 2
            slopes = [_slope(middle, axis) for axis in range(1, middle.dim())]
            power = difference.square() + _FLOOR
            for slope in slopes:
                power = torch.addcmul(power, slope, slope)
            share = 2 * difference / power
            made += [slope * share for slope in slopes]
        return made


def _slope(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, one-sided at the border."""
    n = image.shape[axis]
    if n == 1:
        return torch.zeros_like(image)
    later, earlier = image.narrow(axis, 2, n - 2), image.narrow(axis, 0, n - 2)
    ends = [(image.narrow(axis, i + 1, 1), image.narrow(axis, i, 1)) for i in (0, n - 2)]
    if is_recorded() or (torch.is_grad_enabled() and image.requires_grad):
        (after, first), (last, before) = ends
        return torch.cat([after - first, (later - earlier) * 0.5, last - before], axis)
    result = torch.empty_like(image)
    torch.sub(later, earlier, out=result.narrow(axis, 1, n - 2)).mul_(0.5)
    for place, (one, other) in zip((0, n - 1), ends, strict=True):
        torch.sub(one, other, out=result.narrow(axis, place, 1))
    return result
