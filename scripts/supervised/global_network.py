"""The global network: an affine transform of a pair in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scripts.errors import CohortError
from scripts.supervised.field_network import (
    FieldNetwork,
    FoundFields,
    PairInputs,
    convolution,
    start_weights,
    store_channels_last,
)
from scripts.supervised.layers import AffineField, CentredAffine

__all__ = ["GlobalNetwork"]


class GlobalNetwork(FieldNetwork):
    """Convolutions in pairs, each pair halving the size, then two dense layers.

    The last layer's numbers (6 in a plane, 12 in a volume) are deviations from the identity about
    the centre, in units of half the extents: so their size doesn't depend on the image's. It
    starts at 0, the identity. At 320 x 456 pixels there are 237,630 parameters.

    A pair of another size is resampled to the network's, and its transform is the same in these
    units.

    Args:
        shape: of the images it is built for.
        filters: channels of each pair of convolutions.
        dense: size of the first dense layer.
        inputs: see `PairInputs`.
        description: see `DescribedNetwork`.

    Raises:
        CohortError: nothing is left of such an image after the halvings.
    """

    name = "global"

    def __init__(
        self,
        shape: Sequence[int] = (320, 456),
        filters: Sequence[int] = (16, 16, 32, 32, 32),
        dense: int = 40,
        inputs: str = "images",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(description)
        self.shape = tuple(int(n) for n in shape)
        d = len(self.shape)
        reduced = [n >> len(filters) for n in self.shape]
        if min(reduced) < 1:
            raise CohortError(
                f"images of {' x '.join(map(str, self.shape))} are too small for a global network "
                f"of {len(filters)} halvings, which need {1 << len(filters)} pixels along each "
                "axis; give fewer train_fields#model#global_filters"
            )
        self.inputs = PairInputs(inputs)
        self.blocks = nn.ModuleList()
        channels = self.inputs.channels(d)
        for width in filters:
            self.blocks.append(
                nn.Sequential(
                    convolution(d, channels, width),
                    nn.ReLU(inplace=True),
                    convolution(d, width, width),
                    nn.ReLU(inplace=True),
                )
            )
            channels = width
        self.dense = nn.Linear(channels * math.prod(reduced), dense)
        self.parameters_of = nn.Linear(dense, d * (d + 1))
        self.field = AffineField()
        start_weights(self)
        for layer in (self.parameters_of.weight, self.parameters_of.bias):
            nn.init.zeros_(layer)
        store_channels_last(self)

    def numbers(self, pair: torch.Tensor) -> torch.Tensor:
        """The transform's numbers ``(B, d (d + 1))`` float32, see `CentredAffine.of_parameters`."""
        if tuple(pair.shape[2:]) != self.shape:
            pair = _resampled(pair, self.shape)
        x = self.inputs(pair)
        pool = F.max_pool3d if pair.dim() == 5 else F.max_pool2d
        for block in self.blocks:
            x = pool(block(x), 2)
        with torch.autocast(pair.device.type, enabled=False):
            # 6 numbers in bfloat16 would be off by a tenth of a pixel.
            return self.parameters_of(self.dense(x.float().flatten(1)))

    def affine(self, pair: torch.Tensor) -> CentredAffine:
        """The transform of pairs, on the grid of the pair."""
        return CentredAffine.of_parameters(self.numbers(pair), pair.shape[2:])

    def find(self, pair: torch.Tensor, inverse: bool = False) -> FoundFields:
        """See `FieldNetwork.find`; the inverse is exact."""
        numbers, shape = self.numbers(pair), pair.shape[2:]
        back = None
        if inverse:
            back = CentredAffine.of_parameters(numbers, shape).inverse().displacement(shape)
        return FoundFields(self.field(numbers, shape), back)


def _resampled(pair: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    mode = "trilinear" if pair.dim() == 5 else "bilinear"
    smaller = any(a < b for a, b in zip(shape, pair.shape[2:], strict=True))
    return F.interpolate(
        pair.float(), size=shape, mode=mode, align_corners=False,
        antialias=smaller and pair.dim() == 4,
    )  # fmt: skip
