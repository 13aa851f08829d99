"""Smooths a velocity only where its flow is close to folding."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from scripts.spatial.jacobian import smallest_corner_determinant

__all__ = ["Flow", "unfolded_velocity"]

_ROUNDS = 50


class Flow(Protocol):
    """A model that integrates velocities to displacements, such as an atlas network."""

    @property
    def field_resolution(self) -> int:
        """Factor by which the velocity's grid is reduced."""
        ...

    def displacements(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and inverse displacement ``(B, d, *shape)`` of a velocity."""
        ...


@torch.no_grad()
def unfolded_velocity(network: Flow, velocity: torch.Tensor, smallest: float = 0.1) -> torch.Tensor:
    """Smooth a velocity so that its flow, both ways, has corner determinants of at least
    ``smallest``.

    The exact flow of a smooth velocity never folds, but squaring a sampled one can, where it is
    rough (2 % of the voxels of a random field, with 7 steps). Only there, the velocity is replaced
    by its local mean, repeatedly; a constant velocity has determinant 1, so this ends. It stops
    after 50 rounds; the check of the published fields then reports any remaining fold.

    Args:
        network: does the integration.
        velocity: ``(1, d, *reduced)``.
        smallest: the wanted determinant.
    """
    pool = F.avg_pool3d if velocity.dim() == 5 else F.avg_pool2d
    spread = F.max_pool3d if velocity.dim() == 5 else F.max_pool2d
    factor = network.field_resolution
    for _ in range(_ROUNDS):
        low = torch.zeros_like(velocity[:, :1])
        for displacement in network.displacements(velocity):
            tight = (smallest_corner_determinant(displacement[0]) < smallest).float()[None, None]
            # Mark the reduced voxels that contain these cells of the full grid.
            reduced = spread(tight, factor, ceil_mode=True)
            padding = [
                n
                for have, want in zip(reduced.shape[:1:-1], low.shape[:1:-1], strict=True)
                for n in (0, want - have)
            ]
            low = torch.maximum(low, F.pad(reduced, padding))
        if not bool(low.any()):
            break
        near = pool(spread(low, 5, stride=1, padding=2), 3, stride=1, padding=1)
        smoothed = pool(velocity, 3, stride=1, padding=1, count_include_pad=False)
        velocity = torch.lerp(velocity, smoothed, near)
    return velocity
