"""Affine networks used: built, read from a checkpoint, and asked about a pair of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.affine.affine_network import AffineNetwork
from scripts.affine.settings import LearnedAffineConfig
from scripts.affine.training_images import AffineImages, WorkingGrid, between_0_and_1
from scripts.cohort import Grid
from scripts.errors import CohortError
from scripts.networks.described import FORMAT, load_described

__all__ = [
    "build_affine_network",
    "estimate_matrix",
    "load_affine_network",
    "matrix_errors",
    "prepared_pair",
    "world_matrix",
]


def build_affine_network(images: AffineImages, settings: LearnedAffineConfig) -> AffineNetwork:
    """The network that the settings ask for, initialised by their seed."""
    torch.manual_seed(settings.optimizer.seed)
    description = {
        "format": FORMAT,
        "grid": asdict(images.grid),
        "settings": settings.as_dict(),
        "trained_on": [item["subject"] for item in images.training()],
        "cohort": images.identity(),
    }
    return _built(images.grid, settings, description)


def _built(
    grid: WorkingGrid, settings: LearnedAffineConfig, description: dict[str, Any]
) -> AffineNetwork:
    model = settings.model
    return AffineNetwork(
        grid,
        settings.family,
        model.kind,
        model.pair,
        model.backbone,
        model.keypoints,
        model.width,
        model.passes,
        model.ridge,
        description,
    )


def load_affine_network(path: str | Path) -> AffineNetwork:
    """A published network, ready to be asked.

    Raises:
        CheckpointError: the file isn't there, is damaged, or is no affine network's.
    """

    def build(described: dict[str, Any]) -> AffineNetwork:
        settings = LearnedAffineConfig.load(described["settings"])
        return _built(WorkingGrid.of_dict(described["grid"]), settings, described)

    return load_described(path, "affine network", "estimator", build)


def prepared_pair(
    network: AffineNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
) -> torch.Tensor:
    """Two images, on whatever grids, as the network sees them: ``(1, 2, *shape)``.

    Each is brought onto the network's grid about the centre of its own volume.

    Raises:
        CohortError: an image is constant or not finite, or has other dimensions than the network.
    """
    log_share = network.description["settings"]["images"]["log_share"]
    seen = []
    for name, data, affine in (("fixed", fixed, fixed_affine), ("moving", moving, moving_affine)):
        if data.ndim != len(network.grid.shape):
            raise CohortError(
                f"the {name} image has {data.ndim} dimensions, the network "
                f"{len(network.grid.shape)}"
            )
        if not np.isfinite(data).all():
            raise CohortError(f"the {name} image is not finite")
        if not np.ptp(data) > 0:
            raise CohortError(f"the {name} image is constant: there is nothing to align")
        seen.append(network.grid.of_image(between_0_and_1(data, log_share), affine))
    return torch.cat(seen)[None]


@torch.no_grad()
def estimate_matrix(
    network: AffineNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    passes: int | None = None,
) -> torch.Tensor:
    """The network's matrix ``(4, 4)`` float64, fixed world point to moving world point (RAS, mm).

    Images ``(*shape)`` of any two grids; ``passes`` takes the place of the trained cascade's.

    Raises:
        CohortError: see `prepared_pair`.
    """
    pair = prepared_pair(network, fixed, fixed_affine, moving, moving_affine)
    device = next(network.parameters()).device
    local = network.cascade(pair.to(device), passes)[-1].matrix[0].cpu()
    return _in_world(network, local, fixed_affine, fixed.shape, moving_affine, moving.shape)


def world_matrix(
    network: AffineNetwork, local: torch.Tensor, fixed: Grid, moving: Grid
) -> torch.Tensor:
    """A matrix of the network's grid ``(4, 4)`` between the worlds of two images' grids."""
    d = len(network.grid.shape)  # a plane's file may have a third axis of one voxel
    return _in_world(network, local, fixed.affine, fixed.shape[:d], moving.affine, moving.shape[:d])


def _in_world(
    network: AffineNetwork,
    local: torch.Tensor,
    fixed_affine: np.ndarray,
    fixed_shape: Sequence[int],
    moving_affine: np.ndarray,
    moving_shape: Sequence[int],
) -> torch.Tensor:
    there = network.grid.place_of(fixed_affine, fixed_shape)
    here = network.grid.place_of(moving_affine, moving_shape)
    return here @ local @ torch.linalg.inv(there)


def matrix_errors(
    found: torch.Tensor, truth: torch.Tensor, half_width: torch.Tensor
) -> dict[str, torch.Tensor]:
    """How far matrices about a common centre 0 are from the truth, one number a pair.

    - ``rotation_error``: angle between the rotations nearest to both, degrees;
    - ``translation_error``: distance between where both take the centre, mm;
    - ``distance``: root mean square over the volume of the distance between where both take a
      point, mm: sqrt(|t|^2 + sum_j |column_j|^2 h_j^2 / 3) of the difference, half widths h.

    Args:
        found: ``(B, 4, 4)``.
        truth: ``(B, 4, 4)``.
        half_width: ``(d,)`` mm.
    """
    d = len(half_width)
    apart = found[:, :d] - truth[:, :d]
    squares = apart[:, :, :d].square().sum(1) * half_width.square() / 3
    far = apart[:, :, 3].square().sum(1)
    rotations = []
    for matrix in (found, truth):
        u, _, vh = torch.linalg.svd(matrix[:, :d, :d])
        sign = torch.linalg.det(u @ vh)
        u = torch.cat([u[:, :, :-1], u[:, :, -1:] * sign.view(-1, 1, 1)], dim=2)
        rotations.append(u @ vh)
    turn = rotations[0] @ rotations[1].mT
    # By the chord, which unlike the arc cosine of the trace is exact for small angles too.
    chord = (turn - torch.eye(d, dtype=turn.dtype, device=turn.device)).square().sum((1, 2)).sqrt()
    angle = 2 * torch.asin((chord / 8**0.5).clamp(max=1))
    return {
        "rotation_error": torch.rad2deg(angle),
        "translation_error": far.sqrt(),
        "distance": (far + squares.sum(1)).sqrt(),
    }
