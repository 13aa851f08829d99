"""Common parts of the networks of fields: the input of a pair, and the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scripts.networks.described import DescribedNetwork
from scripts.networks.pair_inputs import PairForces
from scripts.networks.unet import convolution_of
from scripts.supervised.layers import FieldWarp

__all__ = [
    "FieldNetwork",
    "FoundFields",
    "PairInputs",
    "channels_last",
    "convolution",
    "start_weights",
    "store_channels_last",
    "with_dark_background",
]

STANDARDISATION = "background at 0, bright background inverted, unit root mean square"
"""Preprocessing of each image of a pair; stored with the network."""


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same values with the channels of a pixel side by side: convolutions are faster so."""
    order = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=order)


def with_dark_background(images: torch.Tensor) -> torch.Tensor:
    """Images whose background is 0 and darker than the rest.

    The background is the median of the outermost pixels. Where it is brighter than the image's
    mean, the image is inverted.

    Args:
        images: ``(B, C, *shape)``.
    """
    faces = []
    for axis in range(2, images.dim()):
        for place in (0, -1):
            faces.append(images.select(axis, place).flatten(2))
    spatial = (*images.shape[:2], *[1] * (images.dim() - 2))
    background = torch.cat(faces, 2).median(2).values.view(spatial)
    mean = images.flatten(2).mean(2).view(spatial)
    return torch.where(background > mean, background - images, images - background)


class PairInputs(nn.Module):
    """The input channels of a pair.

    With images of 0 to 1 on a white background, nothing was learned in 300 steps.

    Args:
        kind: ``images``: both, of unit root mean square; ``forces``: see `PairForces`.
    """

    def __init__(self, kind: str = "images") -> None:
        super().__init__()
        if kind not in ("images", "forces"):
            raise ValueError(f"kind must be 'images' or 'forces', got {kind!r}")
        self.kind = kind
        self.forces = PairForces() if kind == "forces" else None

    def channels(self, spatial_dims: int) -> int:
        """Number of input channels."""
        return 2 if self.forces is None else self.forces.channels(spatial_dims)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """``(B, channels, *shape)`` of a pair ``(B, 2, *shape)``, reference and moving, 0 to 1."""
        with torch.autocast(pair.device.type, enabled=False):
            dark = with_dark_background(pair.float())
            if self.forces is not None:
                copies = [self.forces.copies(one) for one in dark.split(1, 1)]
                return channels_last(self.forces(copies[1], copies[0]))
            power = dark.square().flatten(2).mean(2).clamp_min(1e-12).sqrt()
            return channels_last(dark / power.view(*power.shape, *[1] * (pair.dim() - 2)))


def convolution(spatial_dims: int, n_in: int, n_out: int, width: int = 3) -> nn.Module:
    """A convolution that keeps the size; an even width makes it larger by 1 along each axis."""
    return convolution_of(spatial_dims)(n_in, n_out, kernel_size=width, padding=width // 2)


def start_weights(module: nn.Module, slope: float = 0.0) -> None:
    """He's random start for a rectifier of a slope below 0; biases 0."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(one.weight, a=slope, nonlinearity="leaky_relu")
            if one.bias is not None:
                nn.init.zeros_(one.bias)


def store_channels_last(network: nn.Module) -> None:
    """Store the weights of convolutions in the order of `channels_last`."""
    for one in network.modules():
        if isinstance(one, nn.Conv2d | nn.Conv3d):
            order = torch.channels_last if one.weight.dim() == 4 else torch.channels_last_3d
            one.weight.data = one.weight.data.contiguous(memory_format=order)


@dataclass(frozen=True, eq=False)
class FoundFields:
    """The output of a network for pairs.

    Attributes:
        field: ``(B, d, *shape)`` pixels, ``registered(x) = moving(x + field(x))``.
        inverse: of the swapped pair, if requested; else None.
        global_field: of a merged network's first stage; else None.
    """

    field: torch.Tensor
    inverse: torch.Tensor | None = None
    global_field: torch.Tensor | None = None


class FieldNetwork(DescribedNetwork):
    """A network from pairs ``(B, 2, *shape)``, reference and moving from 0 to 1, to fields.

    Args:
        description: see `DescribedNetwork`.
    """

    name: str
    """``global``, ``local`` or ``merged``."""
    warp: FieldWarp
    """Warps images by the fields that the network predicts."""

    def __init__(self, description: Mapping[str, Any] | None = None) -> None:
        super().__init__(description)
        self.warp = FieldWarp()

    def find(self, pair: torch.Tensor, inverse: bool = False) -> FoundFields:
        """Fields of pairs.

        Args:
            pair: ``(B, 2, *shape)``.
            inverse: also the field back: exact where the network knows it, else predicted or
                found by iteration.
        """
        raise NotImplementedError

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """The field ``(B, d, *shape)`` of pairs ``(B, 2, *shape)``."""
        return self.find(pair).field
