"""Common part of the networks that ship: a U-Net over a pair of images and inputs made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from scripts.networks.described import DescribedNetwork
from scripts.networks.pair_inputs import pair_inputs
from scripts.networks.unet import RegistrationUNet

__all__ = ["FIELD_RESOLUTION", "PairUNet"]

FIELD_RESOLUTION = 2
"""Factor by which the grid of the U-Net's output is reduced."""


class PairUNet(DescribedNetwork):
    """A U-Net for pairs, applied in several passes. Only the U-Net has weights.

    Args:
        enc_features: see `RegistrationUNet`.
        dec_features: see `RegistrationUNet`.
        passes: factors by which the pair is averaged; None: `usual_passes`.
        seed: of the starting weights.
        description: see `DescribedNetwork`.
        inputs: what the U-Net is shown, see `pair_inputs`.
    """

    usual_passes: ClassVar[tuple[int, ...]]
    """Factors by which the pair is averaged for each pass."""
    further: ClassVar[int] = 0
    """See `RegistrationUNet`."""
    kind: ClassVar[str]
    """Kind of network, as its file records it."""
    called: ClassVar[str]
    """Its name in messages, without an article."""

    def __init__(
        self,
        enc_features: Sequence[int] = (16, 32, 32, 32),
        dec_features: Sequence[int] = (32, 32, 32, 16, 16),
        passes: Sequence[int] | None = None,
        seed: int | None = None,
        description: Mapping[str, Any] | None = None,
        inputs: str = "forces",
    ) -> None:
        super().__init__(description)
        self.passes = self.usual_passes if passes is None else tuple(passes)
        self.inputs = pair_inputs(inputs)
        self.unet = RegistrationUNet(
            3,
            self.inputs.channels(3),
            enc_features,
            dec_features,
            factor=FIELD_RESOLUTION,
            seed=seed,
            further=self.further,
        )
        self.unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._add_layers()

    def _add_layers(self) -> None:
        """Make a network's other layers, which have no weights; here none."""
