"""The input of a registration network, made from a pair of images."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from scripts.errors import ConfigurationError, shown
from scripts.networks.smoothing import GaussianSmoothing
from scripts.runtime.tracing import is_followed

__all__ = ["PairCopies", "PairCosts", "PairForces", "PairInputs", "pair_inputs"]

_SCALES = (1.5, 3.0)  # voxels, of the smoothed copies that forces are taken from
_SLAB = 1 << 17  # voxels
_FLOOR = 1e-4  # keeps flat regions, whose variance or gradient is rounding, at 0
_REACH = 1  # voxels along each axis, of the moves whose correlations are shown


class PairInputs(nn.Module):
    """Both images of a pair as they are, ``(B, 2, *shape)``."""

    name: ClassVar[str] = "pair"
    """Name of these inputs in the file of a network."""

    @staticmethod
    def channels(spatial_dims: int) -> int:
        """How many channels the network sees."""
        return 2

    def copies(self, image: torch.Tensor) -> torch.Tensor:
        """Copies of one image ``(B, 1, *shape)``, for `forward`.

        A fixed image's copies are made once for all passes at a resolution.
        """
        return image.float()

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The network's input ``(B, channels, *shape)``, from the `copies` of both images."""
        return _for_convolutions(torch.stack([moving, fixed], 2).flatten(1, 2))


class PairCopies(PairInputs):
    """Both images and locally normalised copies of them, ``(B, 4, *shape)``.

    Copies make images of different brightness, bias and contrast look alike: (x - Gx) /
    sqrt(max(G x^2 - (Gx)^2, 0) + 1e-4), G a Gaussian of 3 voxels.
    """

    name = "copies"

    def __init__(self) -> None:
        super().__init__()
        self.window = GaussianSmoothing(3.0)

    @staticmethod
    def channels(spatial_dims: int) -> int:
        """How many channels the network sees."""
        return 4

    def copies(self, image: torch.Tensor) -> torch.Tensor:
        """An image and its normalised copy, ``(B, 2, *shape)``."""
        image = image.float()
        mean, power = self.window(torch.cat([image, image.square()], 1)).split(1, 1)
        spread = (power - mean.square()).clamp_min(0).add(_FLOOR).sqrt()
        return torch.cat([image, (image - mean) / spread], 1)


class PairForces(PairCopies):
    """Both images, locally normalised copies of them, and the moves that their edges suggest.

    A plain U-Net has to learn how two edges are matched. Given the forces of demons registration,
    it only has to learn when to trust them, and this also works for images unlike those of the
    training. Channels of ``(B, 13, *shape)``:

    | channels | what |
    |---|---|
    | 0, 1 | moving m, fixed f |
    | 2, 3 | both normalised, see `PairCopies` |
    | 4-6 | force of m and f: 2 d g / (g^2 + d^2 + 1e-4), d = f - m, g the mean gradient |
    | 7-9, 10-12 | the same of the normalised pair, smoothed by 1.5 and by 3 voxels |

    (In a plane there are two components a force, and 10 channels.) The force is the step, in
    voxels, that first-order matching takes; Thirion, Medical Image Analysis 1998, in the symmetric
    form of Vercauteren et al., NeuroImage 2009.
    """

    name = "forces"

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(GaussianSmoothing(sigma) for sigma in _SCALES)

    @staticmethod
    def channels(spatial_dims: int) -> int:
        """How many channels the network sees."""
        return 4 + (1 + len(_SCALES)) * spatial_dims

    def copies(self, image: torch.Tensor) -> torch.Tensor:
        """An image, its normalised copy, and that smoothed: ``(B, 4, *shape)``."""
        both = super().copies(image)
        return torch.cat([both, *(smooth(both[:, 1:]) for smooth in self.scales)], 1)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The network's input, from the `copies` of both images.

        Computed slab by slab along the first axis, so that intermediate results stay in the cache,
        and stored in the memory order that convolutions need.
        """
        if is_followed(moving, fixed):  # the sizes of a recorded program may differ: no slabs
            return torch.stack(self._of_slab(moving, fixed), 1)
        batch, _, n, *rest = moving.shape
        result = torch.empty(
            (batch, PairForces.channels(1 + len(rest)), n, *rest),
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


class PairCosts(PairForces):
    """What `PairForces` shows, and how well both images match after small moves.

    A correlation layer: for each move of at most one voxel along each axis (27 in space, 9 in a
    plane), the local correlation of the fixed image's normalised copy with that of the moving
    image, moved. It is the Gaussian mean, of 1.5 voxels, of their product. Outside the image it
    counts as 0.
    """

    name = "costs"

    @staticmethod
    def channels(spatial_dims: int) -> int:
        """How many channels the network sees."""
        return PairForces.channels(spatial_dims) + (2 * _REACH + 1) ** spatial_dims

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The network's input, from the `copies` of both images."""
        return _for_convolutions(
            torch.cat([super().forward(moving, fixed), self._costs(moving, fixed)], 1)
        )

    def _costs(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """``(B, 27, *shape)``; the last axis' moves change fastest, from -1 to 1."""
        moving, fixed = moving[:, 1:2], fixed[:, 1:2]
        shape = fixed.shape[2:]
        wider = F.pad(moving, [_REACH] * (2 * len(shape)))
        made = []
        for move in itertools.product(range(2 * _REACH + 1), repeat=len(shape)):
            moved = wider
            for axis, (start, n) in enumerate(zip(move, shape, strict=True), 2):
                moved = moved.narrow(axis, start, n)
            made.append(self.scales[0](moved * fixed))
        return torch.cat(made, 1)


_KINDS: dict[str, type[PairInputs]] = {
    kind.name: kind for kind in (PairInputs, PairCopies, PairForces, PairCosts)
}


def pair_inputs(name: str) -> PairInputs:
    """The inputs of a network for pairs: ``pair``, ``copies``, ``forces`` or ``costs``.

    Raises:
        ConfigurationError: another name.
    """
    kind = _KINDS.get(str(name))
    if kind is None:
        raise ConfigurationError(f"inputs = {shown(name)}: must be one of {', '.join(_KINDS)}")
    return kind()


def _for_convolutions(inputs: torch.Tensor) -> torch.Tensor:
    """The same, in the memory order that convolutions need."""
    if inputs.dim() == 5:
        return inputs.contiguous(memory_format=torch.channels_last_3d)
    return inputs


def _slope(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, one-sided at the border."""
    n = image.shape[axis]
    if n == 1:
        return torch.zeros_like(image)
    later, earlier = image.narrow(axis, 2, n - 2), image.narrow(axis, 0, n - 2)
    ends = [(image.narrow(axis, i + 1, 1), image.narrow(axis, i, 1)) for i in (0, n - 2)]
    if is_followed(image):
        (after, first), (last, before) = ends
        return torch.cat([after - first, (later - earlier) * 0.5, last - before], axis)
    result = torch.empty_like(image)
    torch.sub(later, earlier, out=result.narrow(axis, 1, n - 2)).mul_(0.5)
    for place, (one, other) in zip((0, n - 1), ends, strict=True):
        torch.sub(one, other, out=result.narrow(axis, place, 1))
    return result
