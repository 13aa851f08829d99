"""The registration network that ships, used instead of a trained elastic network."""

from __future__ import annotations

import numpy as np
import torch

from scripts.elastic.registrar import PairRegistrar, log_gain
from scripts.registration.images import WorldImage
from scripts.registration.network_field import NetworkField
from scripts.registration.start_field import StartField
from scripts.shipped.network import PairNetwork

__all__ = ["ShippedElasticNetwork"]


class ShippedElasticNetwork(PairRegistrar):
    """Registers volumes on a grid along the fixed image's axes, whatever their contrasts.

    Args:
        network: as shipped.
        contrast: see `NetworkField`.
    """

    def __init__(self, network: PairNetwork, contrast: str = "auto") -> None:
        super().__init__()
        self.network = network
        self.registration = NetworkField(network, contrast)

    @property
    def spatial_dims(self) -> int:
        """See `PairRegistrar.spatial_dims`."""
        return 3

    def shown(
        self, fixed: WorldImage, moving: WorldImage, log_share: float | None, matrix: np.ndarray
    ) -> torch.Tensor:
        """See `PairRegistrar.shown`."""
        pair = [_compared(image, log_share) for image in (fixed, moving)]
        fixed_seen, moving_seen = self.registration.prepared(
            pair[0], pair[1], torch.from_numpy(matrix)
        )
        return torch.cat([fixed_seen.values, moving_seen.values], 1)[0]

    def velocity(self, pair: torch.Tensor) -> torch.Tensor:
        """See `PairRegistrar.velocity`."""
        eye = np.eye(4)
        velocities = []
        for one in pair.split(1):
            fixed, moving = (WorldImage(image, eye) for image in one.split(1, 1))
            result = self.registration.velocity(moving, fixed)
            log_gain(result)
            velocities.append(result.velocity)
        return torch.cat(velocities)

    def fields_of(self, velocity: torch.Tensor, fixed: WorldImage) -> StartField:
        """See `PairRegistrar.fields_of`."""
        return self.registration.field(velocity, fixed)


def _compared(image: WorldImage, log_share: float | None) -> WorldImage:
    if log_share is None:
        return image
    values = image.values.clamp_min(0)
    offset = log_share * float(values.amax())
    return WorldImage(torch.log1p(values / max(offset, 1e-12)), image.affine, image.inside)
