"""The registration network that ships, for a pair of images of any two contrasts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.errors import CohortError
from scripts.networks.grids import enlarge
from scripts.networks.integration import GridFlow
from scripts.networks.passes import PairPasses
from scripts.registration.contrast import CONTRASTS, ContrastMatch
from scripts.registration.field_gain import FieldGain, contrast_differs, field_gain
from scripts.registration.images import WorldImage, known_of_both
from scripts.registration.network_grid import NetworkGrid, single_channel
from scripts.registration.start_field import StartField
from scripts.shipped.network import PairNetwork
from scripts.shipped.weights import SHIPPED, load_pair_network
from scripts.spatial.unfolding import unfolded_velocity
from scripts.spatial.warp import warp

__all__ = ["NetworkField", "NetworkVelocity", "pair_network"]

_SIDE = 96  # voxels along the longest side of the network's grid, at most
_LARGE = 72  # voxels, from which on a pair is also seen at an eighth of the resolution
_SMALLEST_PASS = 6  # voxels along the shortest side that a pass sees


@dataclass(frozen=True, eq=False)
class NetworkVelocity(FieldGain):
    """The network's result for a pair on its grid.

    Attributes:
        velocity: ``(1, 3, *shape / 2)`` in voxels of the grid; 0 where it didn't help.
    """

    velocity: torch.Tensor


class NetworkField:
    """Registers two volumes after an affine.

    The network knows only pairs of one contrast. An image of another contrast is first converted to
    the fixed one's (`ContrastMatch`). This is repeated before each pass, because the match improves
    with the alignment.

    A field that doesn't improve the local correlation is left out: the result is then the start.

    Args:
        network: as shipped, or another one of its kind.
        contrast: ``same``, ``other``, or ``auto``: other if a match raises the correlation.
    """

    def __init__(self, network: PairNetwork, contrast: str = "auto") -> None:
        if contrast not in CONTRASTS:
            raise ValueError(f"contrast must be one of {', '.join(CONTRASTS)}, got {contrast!r}")
        self.network = network
        self.contrast = contrast

    @torch.no_grad()
    def __call__(
        self, fixed: WorldImage, moving: WorldImage, matrix: torch.Tensor | None = None
    ) -> tuple[StartField, NetworkVelocity]:
        """The field of a pair on the fixed grid, which comes before the matrix.

        Args:
            fixed: the fixed image.
            moving: the moving image, on any grid.
            matrix: ``(4, 4)``, fixed to moving point, RAS mm; None: the identity.

        Raises:
            CohortError: the images are planes.
        """
        fixed_image, moving_image = self.prepared(fixed, moving, matrix)
        result = self.velocity(moving_image, fixed_image)
        return self.field(result.velocity, fixed), result

    @staticmethod
    def _grid_of(fixed: WorldImage) -> NetworkGrid:
        """The network's grid for a fixed image."""
        return NetworkGrid.of_image(fixed, _SIDE, enlarge=False)

    def prepared(
        self, fixed: WorldImage, moving: WorldImage, matrix: torch.Tensor | None = None
    ) -> tuple[WorldImage, WorldImage]:
        """The fixed and the moving image of a pair on the network's grid.

        Raises:
            CohortError: the images are planes.
        """
        if len(fixed.shape) != 3:
            raise CohortError(
                "the registration network that ships takes volumes, and these images are planes; "
                "register them by refine, or by a network of train-elastic"
            )
        eye = torch.eye(4, dtype=torch.float64, device=fixed.values.device)
        given = eye if matrix is None else matrix.to(eye)
        grid = self._grid_of(fixed)
        fixed_image = grid.resampled(single_channel(fixed, grid.size), eye[None])
        return fixed_image, grid.resampled(single_channel(moving, grid.size), given[None])

    def field(self, velocity: torch.Tensor, fixed: WorldImage) -> StartField:
        """A velocity on the network's grid as a field on the fixed image's."""
        grid = self._grid_of(fixed)
        source = WorldImage(velocity.new_zeros(1, 1, *grid.shape), grid.affine.cpu().numpy())
        flows = self.network.integration.both(velocity, grid.shape)
        full = enlarge(velocity, grid.shape, self.network.integration.factor)
        return StartField(*flows, full).on(source, fixed)

    @torch.no_grad()
    def velocity(self, moving: WorldImage, fixed: WorldImage) -> NetworkVelocity:
        """The velocity of a pair on one grid.

        Args:
            moving: the moving image, of one channel, from 0 to 1.
            fixed: the fixed image, likewise.
        """
        self.network.to(fixed.values.device)
        weight = known_of_both(moving.inside, fixed.inside)
        matched = contrast_differs(self.contrast, moving.values, fixed.values, weight)
        velocity = self._velocity(moving.values, fixed.values, weight, matched)
        velocity = unfolded_velocity(GridFlow(self.network.integration, fixed.shape), velocity)
        move = self.network.integration(velocity, fixed.shape)
        gain = field_gain(fixed, moving, move, matched)
        if not gain.helps:
            still = torch.zeros_like(velocity)
            return NetworkVelocity(matched, gain.start_loss, gain.start_loss, still)
        return NetworkVelocity(matched, gain.loss, gain.start_loss, velocity)

    def _velocity(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        weight: torch.Tensor | None,
        matched: bool,
    ) -> torch.Tensor:
        network, shape = self.network, fixed.shape[2:]
        passes = network.passes if max(shape) < _LARGE else (8, *network.passes)
        velocity: torch.Tensor | None = None
        for factor in passes:
            if min(shape) / factor < _SMALLEST_PASS and factor != passes[-1]:
                continue
            shown = moving
            if matched:
                current = moving
                if velocity is not None:
                    move = network.integration(velocity, shape, rough=True)
                    current = warp(moving, move, padding_mode="border")
                shown = ContrastMatch.between(current, fixed, weight)(moving)
            passes_of_pair = PairPasses(
                network.unet, network.smoothing, network.integration, network.warp,
                shown, fixed, 1.0, network.inputs,
            )  # fmt: skip
            added = passes_of_pair.one_pass(factor, velocity)
            velocity = added if velocity is None else velocity + added
        assert velocity is not None
        return velocity


@functools.lru_cache(maxsize=1)
def pair_network(path: str | Path = SHIPPED) -> PairNetwork:
    """The registration network that came with the installation, or another one of its kind.

    Raises:
        CheckpointError: see `load_pair_network`.
    """
    return load_pair_network(path)
