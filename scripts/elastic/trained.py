"""A trained elastic network, as jobs use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scripts.elastic.network import (
    ElasticNetwork,
    load_elastic_network,
    on_image_grid,
    prepared_images,
)
from scripts.elastic.registrar import PairRegistrar, log_gain
from scripts.errors import CohortError
from scripts.networks.grids import enlarge
from scripts.registration.contrast import CONTRASTS
from scripts.registration.field_gain import FieldGain, contrast_differs, field_gain
from scripts.registration.images import WorldImage
from scripts.registration.start_field import StartField
from scripts.spatial.unfolding import unfolded_velocity

__all__ = ["TrainedElasticNetwork", "load_trained_network"]


class TrainedElasticNetwork(PairRegistrar):
    """Registers pairs by a network of ``train-elastic``; the result is never worse than the start.

    The network needs no contrast to be matched. Its field is judged in the fixed image's contrast:
    if that makes the pair less similar, it is left out.

    Args:
        network: as trained.
        contrast: in which the field is judged, see `contrast_differs`.
    """

    def __init__(self, network: ElasticNetwork, contrast: str = "auto") -> None:
        super().__init__()
        if contrast not in CONTRASTS:
            raise ValueError(f"contrast must be one of {', '.join(CONTRASTS)}, got {contrast!r}")
        self.network = network
        self.contrast = contrast

    @property
    def spatial_dims(self) -> int:
        """See `PairRegistrar.spatial_dims`."""
        return len(self.network.grid.shape)

    def shown(
        self, fixed: WorldImage, moving: WorldImage, log_share: float | None, matrix: np.ndarray
    ) -> torch.Tensor:
        """See `PairRegistrar.shown`."""
        pair = (*_as_array(fixed), *_as_array(moving))
        onto = torch.from_numpy(np.asarray(matrix, dtype=np.float64))
        return prepared_images(self.network, *pair, log_share, onto)[0]

    def velocity(self, pair: torch.Tensor) -> torch.Tensor:
        """See `PairRegistrar.velocity`."""
        velocities = []
        for one in pair.split(1):
            velocity, gain = self.judged(one)
            log_gain(gain)
            velocities.append(velocity)
        return torch.cat(velocities)

    def fields_of(self, velocity: torch.Tensor, fixed: WorldImage) -> StartField:
        """See `PairRegistrar.fields_of`."""
        grid = self.network.grid
        full = enlarge(velocity, grid.shape, self.network.field_resolution)
        forward, inverse, stationary = (
            on_image_grid(one.cpu(), grid, fixed.affine, fixed.shape)
            for one in (*self.network.displacements(velocity), full)
        )
        return StartField(
            forward, inverse, stationary if self.network.integration.int_steps else None
        )

    @torch.no_grad()
    def judged(self, pair: torch.Tensor) -> tuple[torch.Tensor, FieldGain]:
        """The velocity of a pair ``(1, 2, *shape)``, 0 if it doesn't help, and what it gains."""
        fixed, moving = (WorldImage(image, self.network.grid.affine) for image in pair.split(1, 1))
        velocity = unfolded_velocity(self.network, self.network.velocity(pair))
        matched = contrast_differs(self.contrast, moving.values, fixed.values)
        gain = field_gain(fixed, moving, self.network.displacement(velocity), matched)
        if not gain.helps:
            still = torch.zeros_like(velocity)
            return still, FieldGain(matched, gain.start_loss, gain.start_loss)
        return velocity, gain

    @torch.no_grad()
    def __call__(
        self, fixed: WorldImage, moving: WorldImage, matrix: torch.Tensor | None = None
    ) -> tuple[StartField, FieldGain]:
        """See `FieldFinder`.

        Raises:
            CohortError: the images have several channels, or other dimensions than the network.
        """
        for name, image in (("fixed", fixed), ("moving", moving)):
            if len(image.shape) != self.spatial_dims or image.values.shape[1] != 1:
                raise CohortError(
                    f"the {name} image has {len(image.shape)} dimensions and "
                    f"{image.values.shape[1]} channels, the network of elastic_start takes "
                    f"{self.spatial_dims} dimensions and one channel"
                )
        onto = np.eye(4) if matrix is None else matrix.cpu().numpy()
        pair = self.shown(fixed, moving, None, onto)[None]
        velocity, gain = self.judged(pair.to(self.network.described.device))
        field = self.fields_of(velocity, fixed)
        return field.to(fixed.values.device), gain


def load_trained_network(path: str | Path, contrast: str = "auto") -> TrainedElasticNetwork:
    """The network of a file that ``train-elastic`` wrote.

    Raises:
        CheckpointError: see `load_elastic_network`.
    """
    return TrainedElasticNetwork(load_elastic_network(path), contrast).eval()


def _as_array(image: WorldImage) -> tuple[np.ndarray, np.ndarray]:
    return image.values[0, 0].cpu().numpy(), image.affine
