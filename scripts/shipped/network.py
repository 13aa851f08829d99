"""A network that registers pairs of images unlike those it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.networks.integration import VelocityIntegration
from scripts.networks.passes import PairPasses
from scripts.networks.smoothing import GaussianSmoothing
from scripts.shipped.pair_unet import FIELD_RESOLUTION, PairUNet
from scripts.spatial.warp import Warp

__all__ = ["PairNetwork"]

VELOCITY_SMOOTHING = 3.0  # voxels


class PairNetwork(PairUNet):
    """A U-Net applied in several passes to a pair and to what is made of it, such as forces.

    Its weights are those of a `RegistrationUNet`; integration, smoothing and warp have none. They
    work on any grid of three dimensions.

    Args:
        enc_features: see `PairUNet`.
        dec_features: see `PairUNet`.
        passes: see `PairUNet`.
        seed: see `PairUNet`.
        description: see `PairUNet`.
        inputs: see `PairUNet`.
    """

    usual_passes = (4, 2, 1, 1)
    kind = "pair registration"
    called = "registration network"

    def _add_layers(self) -> None:
        self.smoothing = GaussianSmoothing(VELOCITY_SMOOTHING / FIELD_RESOLUTION)
        self.integration = VelocityIntegration(7, FIELD_RESOLUTION)
        self.warp = Warp()

    def forward(
        self, moving: torch.Tensor, fixed: torch.Tensor, passes: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """The velocity after each pass, whose flow warps ``moving`` to ``fixed``.

        Args:
            moving: ``(B, 1, *shape)``, not negative; a template, or an image.
            fixed: the same shape, on the same scale.
            passes: replace the network's.

        Returns:
            For each pass ``(B, 3, *ceil(shape / 2))`` in voxels of the full grid.
        """
        scale = moving.amax((1, 2, 3, 4), keepdim=True).clamp_min(1e-6).reciprocal()
        applied = PairPasses(
            self.unet,
            self.smoothing,
            self.integration,
            self.warp,
            moving,
            fixed,
            scale,
            self.inputs,
        )
        return applied.run(self.passes if passes is None else passes)
