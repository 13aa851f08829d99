"""An affine transform from the fields that the registration network finds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.networks.grids import averaged
from scripts.networks.passes import PairPasses
from scripts.registration.images import WorldImage, known_of_both
from scripts.registration.network_grid import NetworkGrid, single_channel
from scripts.registration.similarity import PairLoss
from scripts.shipped.centred_grid import centred_points
from scripts.shipped.network import PairNetwork
from scripts.shipped.pair_unet import FIELD_RESOLUTION
from scripts.spatial.matrix_fit import fit_matrix

__all__ = ["DenseAffine", "step_family"]

_SIDE = 64  # voxels along the longest side of the grid, at most
_ROUNDS = ((4, 2, 1), (2, 1))
"""Passes of the network in each round."""
_SMALLEST_PASS = 6  # voxels along the shortest side that a pass sees
_TISSUE = 0.05  # of the maximum, which both images must exceed at a point that counts
_LEAST = 1e-6  # weight of the others, so that an empty pair has a fit
_RIDGE = 1e-3

_STEPS = {"affine": "affine", "rigid": "rigid"}


def step_family(family: str) -> str:
    """Transform model of one step on the way to a matrix of ``family``.

    Rotations with one scale are in the two other models, and their products stay there.
    """
    return _STEPS.get(family, "rigid_isotropic")


class DenseAffine:
    """Improves a matrix by the field between the images that it aligns.

    In each round the network registers the pair, and the matrix that fits its field best on the
    tissue of both images is the next step. The round with the best correlation is kept, or the
    start if no round improves it.

    Args:
        network: of registration, as shipped.
        family: transform model of the result, see `step_family`.
    """

    def __init__(self, network: PairNetwork, family: str = "affine") -> None:
        self.network = network
        self.family = family

    @torch.no_grad()
    def __call__(
        self, fixed: WorldImage, moving: WorldImage, matrix: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """The matrix ``(4, 4)`` float64, fixed to moving point, RAS mm, and its loss.

        Args:
            fixed: the fixed volume.
            moving: the moving volume, on any grid.
            matrix: to begin with.
        """
        self.network.to(fixed.values.device)
        grid = NetworkGrid.of_image(fixed, _SIDE, enlarge=False)
        eye = torch.eye(4, dtype=torch.float64, device=fixed.values.device)[None]
        target = grid.resampled(single_channel(fixed, grid.size), eye)
        small = single_channel(moving, grid.size)
        loss = PairLoss(target)
        back = torch.linalg.inv(grid.world)
        current = matrix[None]
        moved = grid.resampled(small, current)
        best, least = current, float(loss(moved.values, moved.inside))
        for passes in _ROUNDS:
            current = current @ (grid.world @ self._step(moved, target, passes) @ back)
            moved = grid.resampled(small, current)
            value = float(loss(moved.values, moved.inside))
            if value < least:
                best, least = current, value
        return best[0], least

    def _step(self, moved: WorldImage, target: WorldImage, passes: Sequence[int]) -> torch.Tensor:
        """The fit ``(1, 4, 4)`` to one field, in voxels from the centre of the grid."""
        network, shape = self.network, target.shape
        applied = PairPasses(
            network.unet, network.smoothing, network.integration, network.warp,
            moved.values, target.values, 1.0, network.inputs,
        )  # fmt: skip
        usable = [factor for factor in passes if min(shape) / factor >= _SMALLEST_PASS]
        velocity = applied.run(usable or passes[-1:])[-1]
        move = network.integration(velocity, shape, FIELD_RESOLUTION, rough=True)
        points = centred_points(shape, FIELD_RESOLUTION)[None].to(move.device)
        both = torch.minimum(moved.values, target.values) > _TISSUE
        weight = both.float()
        known = known_of_both(moved.inside, target.inside)
        if known is not None:
            weight = weight * known
        weight = averaged(weight, FIELD_RESOLUTION).flatten(1).double() + _LEAST
        moved_points = points + move.flatten(2).mT.double()
        return fit_matrix(points, moved_points, weight, step_family(self.family), _RIDGE).matrix
