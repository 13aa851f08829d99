"""The local network: a free displacement of a pair in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.integration import invert_displacement
from scripts.networks.pooling import max_pool
from scripts.supervised.field_network import (
    FieldNetwork,
    FoundFields,
    PairInputs,
    channels_last,
    convolution,
    start_weights,
    store_channels_last,
)

__all__ = ["LocalNetwork"]

_SLOPE = 0.2  # of the leaky rectifier
_START = 1e-3  # of the last convolution: fields of hundredths of a pixel


class LocalNetwork(FieldNetwork):
    """A U-Net at full resolution; 192,578 parameters with the defaults in a plane.

    Start; halving and convolution, as often as there are ``down``; middle; nearest doubling,
    convolution, joining the skip, convolution, as often as there are ``up``; end; a convolution of
    width 2, padded below and to the right, whose channels are the field's components.

    Sizes that 2^downs doesn't divide are continued by their border and cropped again. (Cropping
    the images instead, and calling the field 0 there, tears the moved image.)

    Args:
        spatial_dims: 2 or 3.
        start: channels at full size.
        down: channels after each halving.
        middle: channels at the smallest size.
        up: channels after each doubling, as many as ``down``.
        end: channels before the field.
        compute_inv: whether it learned the swapped pair too, so that it predicts the inverse.
        inputs: see `PairInputs`.
        description: see `DescribedNetwork`.

    Raises:
        ValueError: ``up`` and ``down`` have different lengths.
    """

    name = "local"

    def __init__(
        self,
        spatial_dims: int = 2,
        start: Sequence[int] = (16,),
        down: Sequence[int] = (16, 32, 32, 32),
        middle: Sequence[int] = (32,),
        up: Sequence[int] = (32, 32, 32, 32),
        end: Sequence[int] = (64, 64),
        compute_inv: bool = True,
        inputs: str = "images",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(description)
        if len(up) != len(down):
            raise ValueError(f"up must have as many entries as down, {len(down)}, got {len(up)}")
        d = spatial_dims
        self.spatial_dims = d
        self.compute_inv = compute_inv
        self.inputs = PairInputs(inputs)
        channels = self.inputs.channels(d)

        def block(n_in: int, n_out: int) -> nn.Module:
            return nn.Sequential(convolution(d, n_in, n_out), nn.LeakyReLU(_SLOPE, inplace=True))

        def blocks(n_in: int, widths: Sequence[int]) -> nn.Sequential:
            made = []
            for width in widths:
                made.append(block(n_in, width))
                n_in = width
            return nn.Sequential(*made)

        self.start = blocks(channels, start)
        skips, channels = [], start[-1]
        self.down = nn.ModuleList()
        for width in down:
            skips.append(channels)
            self.down.append(block(channels, width))
            channels = width
        self.middle = blocks(channels, middle)
        channels = middle[-1] if middle else channels
        self.up, self.joined = nn.ModuleList(), nn.ModuleList()
        for width in up:
            self.up.append(block(channels, width))
            self.joined.append(block(width + skips.pop(), width))
            channels = width
        self.end = blocks(channels, end)
        self.field = convolution(d, end[-1] if end else channels, d, width=2)
        start_weights(self, _SLOPE)
        assert isinstance(self.field.weight, torch.Tensor)
        nn.init.normal_(self.field.weight, std=_START)
        store_channels_last(self)

    def displacement(self, pair: torch.Tensor) -> torch.Tensor:
        """The field ``(B, d, *shape)`` float32 of pairs ``(B, 2, *shape)``."""
        shape = pair.shape[2:]
        step = 2 ** len(self.down)
        spare = [-n % step for n in shape]
        if any(spare):
            pair = F.pad(pair, [p for n in reversed(spare) for p in (0, n)], mode="replicate")
        x = self.start(self.inputs(pair))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(max_pool(x))
        x = self.middle(x)
        for up, joined in zip(self.up, self.joined, strict=True):
            x = up(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = joined(channels_last(torch.cat([x, skips.pop()], dim=1)))
        # Padded on both sides, its first values cut: as padded below and to the right, without the
        # copy of all channels that such a padding takes.
        field = self.field(self.end(x))
        inside: Any = (..., *[slice(1, n + 1) for n in shape])
        return field[inside].float().contiguous()

    def find(self, pair: torch.Tensor, inverse: bool = False) -> FoundFields:
        """See `FieldNetwork.find`; the inverse is predicted, or else found by iteration."""
        field = self.displacement(pair)
        if not inverse:
            return FoundFields(field)
        if self.compute_inv:
            return FoundFields(field, self.displacement(pair.flip(1)))
        with torch.autocast(pair.device.type, enabled=False):
            return FoundFields(field, invert_displacement(field))
