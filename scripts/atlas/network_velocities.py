"""Velocities, losses and the model's box, for the emission of an atlas after its training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.registration import estimate_velocity
from scripts.atlas.training_step import soft_assignment
from scripts.losses.atlas_loss import AtlasLoss
from scripts.runtime.processes import add_up, share

__all__ = ["NetworkVelocities"]

logger = logging.getLogger(__name__)


class NetworkVelocities:
    """Each subject's velocity to fixed templates: from the network, optionally refined.

    Args:
        network: as published.
        dataset: log densities, in the order of the cohort (``image``).
        loss: of the training.
        iterations: gradient steps that refine a subject's velocity; 0: no refinement.
        lr: size of the steps, voxels.
        dtype: of the convolutions.
        device: of the computation.
        mixture_sharpness: of the soft assignment with K > 1.
        design: coded covariates ``(N, p)`` of a conditional template.
    """

    def __init__(
        self,
        network: AtlasNetwork,
        dataset: Sequence[dict[str, Any]],
        loss: AtlasLoss,
        iterations: int = 0,
        lr: float = 0.3,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        mixture_sharpness: float = 50.0,
        design: np.ndarray | None = None,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.loss = loss
        self.iterations = iterations
        self.lr = lr
        self.dtype = dtype
        self.device = torch.device(device)
        self.mixture_sharpness = mixture_sharpness
        self.design = None if design is None else torch.as_tensor(design).to(self.device)

    def image(self, index: int) -> torch.Tensor:
        """A subject's log density, ``(1, C, *shape)``, on the device."""
        return torch.as_tensor(self.dataset[index]["image"]).to(self.device)[None]

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """Velocity ``(1, d, *reduced)`` of a subject to a template."""
        return estimate_velocity(
            self.network, self.image(index), self.dtype, template,
            self.loss, self.iterations, self.lr,
            None if self.design is None else self.design[index : index + 1],
        )  # fmt: skip

    @cached_property
    def assignment(self) -> torch.Tensor:
        """Share of each subject that each template explains, ``(N, K)``, from the losses."""
        if self.network.n_templates == 1:
            return torch.ones(len(self.dataset), 1)
        result = torch.zeros(len(self.dataset), self.network.n_templates)
        for index in share(len(self.dataset)):
            result[index] = self._shares(index)[0]
        add_up(result)
        return result

    @torch.no_grad()
    def _shares(self, index: int) -> torch.Tensor:
        network, image = self.network, self.image(index)
        velocities = [
            estimate_velocity(network, image, self.dtype, k) for k in range(network.n_templates)
        ]
        return soft_assignment(network, self.loss, image, velocities, self.mixture_sharpness)
