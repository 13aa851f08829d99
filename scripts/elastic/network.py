"""The elastic network: the atlas's U-Net, integration and warp, for any two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.networks.described import DescribedNetwork
from scripts.networks.integration import VelocityIntegration
from scripts.networks.unet import RegistrationUNet
from scripts.pairwise.images import PairImages
from scripts.pairwise.network_grid import WorkingGrid, prepared_image
from scripts.pairwise.networks import load_pair_network, pair_description
from scripts.settings.elastic import LearnedElasticConfig
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.warp import warp

__all__ = [
    "ElasticNetwork",
    "build_elastic_network",
    "load_elastic_network",
    "on_image_grid",
    "prepared_images",
    "register_images",
]


class ElasticNetwork(DescribedNetwork):
    """Predicts stationary velocities between images of any contrast.

    The velocity's flow maps fixed points to moving points, so it warps the moving image to the
    fixed one. The flow of its negative is the inverse.

    Args:
        grid: of the network.
        enc_features: see `RegistrationUNet`.
        dec_features: see `RegistrationUNet`.
        int_steps: squarings of the integration; 0: plain displacement.
        field_resolution: factor by which the field's grid is reduced.
        description: see `DescribedNetwork`.
    """

    def __init__(
        self,
        grid: WorkingGrid,
        enc_features: Sequence[int] = (16, 32, 32, 32),
        dec_features: Sequence[int] = (32, 32, 32, 16, 16),
        int_steps: int = 7,
        field_resolution: int = 2,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(description)
        self.grid = grid
        self.field_resolution = field_resolution
        self.unet = RegistrationUNet(
            len(grid.shape), 2, enc_features, dec_features, factor=field_resolution
        )
        self.integration = VelocityIntegration(int_steps, field_resolution)

    def velocity(self, pair: torch.Tensor) -> torch.Tensor:
        """Velocities ``(B, d, *reduced)``, voxels of the grid, of pairs ``(B, 2, *shape)``."""
        return self.unet(pair).float().contiguous()

    def displacement(self, velocity: torch.Tensor) -> torch.Tensor:
        """Displacements ``(B, d, *shape)`` in voxels, fixed point to moving point."""
        with torch.autocast(velocity.device.type, enabled=False):
            return self.integration(velocity, self.grid.shape)

    def displacements(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and inverse displacements."""
        with torch.autocast(velocity.device.type, enabled=False):
            return self.integration.both(velocity, self.grid.shape)

    def moved(self, moving: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, *shape)`` on the network's grid, warped by displacements."""
        return warp(moving, displacement)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Displacements ``(B, d, *shape)`` in voxels, of pairs ``(B, 2, *shape)`` from 0 to 1."""
        return self.displacement(self.velocity(pair))


def build_elastic_network(
    images: PairImages, settings: LearnedElasticConfig, labels: Sequence[int] = ()
) -> ElasticNetwork:
    """The network of the settings, initialised with their seed."""
    torch.manual_seed(settings.optimizer.seed)
    description = pair_description(images, settings, labels=list(labels))
    return _built(images.grid, settings, description)


def _built(
    grid: WorkingGrid, settings: LearnedElasticConfig, description: dict[str, Any]
) -> ElasticNetwork:
    model = settings.model
    return ElasticNetwork(
        grid,
        model.enc_features,
        model.dec_features,
        model.int_steps,
        model.field_resolution,
        description,
    )


def load_elastic_network(path: str | Path) -> ElasticNetwork:
    """Load a published network, ready for use.

    Raises:
        CheckpointError: the file doesn't exist, is damaged, or isn't an elastic network.
    """
    return load_pair_network(path, "elastic network", "unet", LearnedElasticConfig, _built)


def prepared_images(
    network: ElasticNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    log_share: float | None = None,
    matrix: torch.Tensor | None = None,
) -> torch.Tensor:
    """Two images, on any grids, as input of the network: ``(1, 2, *shape)``, 0 to 1.

    The network's grid is centred on the fixed volume.

    Args:
        network: as trained.
        fixed: ``(*shape)``.
        fixed_affine: voxel to RAS mm.
        moving: ``(*shape)``, possibly on another grid.
        moving_affine: voxel to RAS mm.
        log_share: for densities, see `PairImagesConfig`.
        matrix: ``(4, 4)``, from fixed to moving point, RAS mm; None: they are aligned in the world.

    Raises:
        CohortError: an image is constant or not finite, or has other dimensions.
    """
    grid = network.grid
    identity = torch.eye(4, dtype=torch.float64)
    moving_matrix = identity if matrix is None else matrix.double()
    prepared = []
    for name, data, affine, onto in (
        ("fixed", fixed, fixed_affine, identity),
        ("moving", moving, moving_affine, moving_matrix),
    ):
        place = onto @ grid.place_of(fixed_affine, fixed.shape)
        prepared.append(prepared_image(grid, name, data, affine, log_share, "register", place))
    return torch.cat(prepared)[None]


def on_image_grid(
    displacement: torch.Tensor,
    grid: WorkingGrid,
    affine: np.ndarray,
    shape: Sequence[int],
) -> torch.Tensor:
    """Resample a displacement from the network's grid to that of the image that it is centred on.

    Args:
        displacement: ``(1, d, *grid.shape)`` in voxels of the network's grid.
        grid: of the network.
        affine: of the image, voxel to RAS mm.
        shape: of the image.

    Returns:
        ``(1, d, *shape)`` in voxels of the image's grid; constant outside the network's grid.
    """
    d = len(grid.shape)
    place = grid.place_of(affine, shape)
    to_volume = torch.linalg.inv(place)
    resampled = resample_by_matrix(
        displacement, grid.affine, to_volume, affine, shape, padding_mode="border"
    )
    # Convert vectors from network voxels to world millimetres, then to image voxels.
    world = place[:3, :d] * grid.spacing
    turn = torch.linalg.pinv(torch.from_numpy(np.asarray(affine[:3, :d], dtype=np.float64))) @ world
    return torch.einsum("ij,bj...->bi...", turn.to(resampled), resampled)


@torch.no_grad()
def register_images(
    network: ElasticNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    log_share: float | None = None,
    matrix: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Register two aligned images of any contrast; arguments as of `prepared_images`.

    Returns:
        The displacement ``(d, *grid.shape)`` in voxels of the network's grid, and the moving image
        on that grid after it ``(1, *grid.shape)``, 0 to 1.

    Raises:
        CohortError: an image is constant or not finite, or has other dimensions.
    """
    pair = prepared_images(
        network, fixed, fixed_affine, moving, moving_affine, log_share, matrix
    ).to(network.described.device)
    displacement = network(pair)
    return displacement[0], warp(pair[:, 1:], displacement)[0]
