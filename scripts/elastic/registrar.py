"""What the registration job needs from a network."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import nn

from scripts.registration.field_gain import NOTHING_IN_COMMON, FieldGain
from scripts.registration.images import WorldImage
from scripts.registration.start_field import StartField

__all__ = ["PairRegistrar", "log_gain"]

logger = logging.getLogger(__name__)


class PairRegistrar(nn.Module, ABC):
    """A network that registers two images after an affine."""

    @property
    @abstractmethod
    def spatial_dims(self) -> int:
        """Number of dimensions of its images."""

    @abstractmethod
    def shown(
        self, fixed: WorldImage, moving: WorldImage, log_share: float | None, matrix: np.ndarray
    ) -> torch.Tensor:
        """Both images on the network's grid, ``(2, *shape)``, from 0 to 1.

        Args:
            fixed: the fixed image.
            moving: the moving image, on any grid.
            log_share: for densities, see `PairImagesConfig`.
            matrix: ``(4, 4)``, fixed to moving point, RAS mm.
        """

    @abstractmethod
    def velocity(self, pair: torch.Tensor) -> torch.Tensor:
        """Velocities ``(B, d, *reduced)``, voxels of the grid, of pairs ``(B, 2, *shape)``.

        0 for a pair that is less similar with the network's field than without.
        """

    @abstractmethod
    def fields_of(self, velocity: torch.Tensor, fixed: WorldImage) -> StartField:
        """Both displacements on the fixed image's grid, from a velocity ``(1, d, *reduced)``."""


def log_gain(gain: FieldGain) -> None:
    """Log what a network's field gained for a pair, or that it is left out."""
    if gain.helps and gain.loss > NOTHING_IN_COMMON:
        logger.warning(
            "local correlation %.3f before, %.3f after: the images have nothing in common, so the "
            "result is probably wrong; do they overlap, in the same units? See "
            "register_elastic#start",
            1 - gain.start_loss, 1 - gain.loss,
        )  # fmt: skip
    elif gain.helps:
        logger.info(
            "local correlation %.3f before, %.3f after%s",
            1 - gain.start_loss, 1 - gain.loss,
            ", of images whose contrast was matched" if gain.matched else "",
        )  # fmt: skip
    else:
        logger.warning(
            "the network would not improve this pair (local correlation %.3f): its field is left "
            "at 0; do the images overlap? See register_elastic#start",
            1 - gain.start_loss,
        )
