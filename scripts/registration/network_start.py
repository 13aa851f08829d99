"""The affine network that ships, as an initialisation of a registration."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.registration.dense_affine import DenseAffine, step_family
from scripts.registration.images import WorldImage
from scripts.registration.initialisation import starting_matrices
from scripts.registration.moved import moved_by
from scripts.registration.network_field import pair_network
from scripts.registration.network_grid import NetworkGrid, single_channel
from scripts.registration.similarity import PairLoss
from scripts.shipped.affine_network import AffinePairNetwork
from scripts.shipped.weights import SHIPPED_AFFINE, load_affine_pair_network
from scripts.spatial.affine_parameters import Frame

__all__ = ["NetworkStart", "shipped_start"]

_SIDE = 40  # voxels along the longest side of the network's grid
_ROUGH_SIDE = 16  # voxels, of the grid on which rotations are compared
_ROUGH_KEPT = 4  # rotations that the network continues from
_SWEEP, _REFINED = (2,), (2, 1, 1)  # passes from all of them, and from the best
_APART = 20.0  # degrees between two of them


class NetworkStart:
    """Estimates a pair's transform without gradient descent, from any rotation.

    Rotations of all directions are compared on a very coarse grid. The network improves the best
    ones, and the one whose images then correlate best is refined by more passes, and on a finer
    grid by the registration network's field (`DenseAffine`). A pass that makes the correlation
    worse is ignored.

    Args:
        network: as shipped.
        dense: improves what the network found.
        family: transform model of the result. With ``rigid_isotropic`` and ``rigid_anisotropic``
            it has one scale.
    """

    def __init__(
        self, network: AffinePairNetwork, dense: DenseAffine, family: str = "affine"
    ) -> None:
        self.network = network
        self.dense = dense
        self.family = family

    @torch.no_grad()
    def __call__(
        self, fixed: WorldImage, moving: WorldImage, given: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        """The matrix ``(4, 4)`` float64, fixed to moving point, RAS mm, and its loss.

        In a plane there is no network, and the best of the rotations is returned.

        Args:
            fixed: the fixed image.
            moving: the moving image, on any grid.
            given: ``(S, 4, 4)``, starts to try besides, in the transform model.
        """
        starts, losses = self._rough(fixed, moving, given)
        if len(fixed.shape) == 2:
            return starts[0], float(losses[0])
        self.network.to(fixed.values.device)
        grid = NetworkGrid.of_image(fixed, _SIDE)
        eye = torch.eye(4, dtype=torch.float64, device=fixed.values.device)[None]
        fixed_image = grid.resampled(single_channel(fixed, grid.size), eye)
        small = single_channel(moving, grid.size)
        loss = PairLoss(fixed_image)
        matrices, values = self._passes(grid, fixed_image, small, starts, loss, _SWEEP)
        best = int(values.argmin())
        matrices, _ = self._passes(grid, fixed_image, small, matrices[best][None], loss, _REFINED)
        return self.dense(fixed, moving, matrices[0])

    def _rough(
        self, fixed: WorldImage, moving: WorldImage, given: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rigid starts (and the given ones) that fit best, far enough from each other."""
        size = 2 * float(Frame.of_grid(fixed.affine, fixed.shape).half_width.max()) / _ROUGH_SIDE
        small = [single_channel(image, size) for image in (fixed, moving)]
        starts = starting_matrices(small[0], small[1], ("identity", "centre", "axes", "search"))
        if given is not None:
            starts = torch.cat([given.to(starts), starts])
        moved, shown = moved_by(starts, small[0], small[1])
        losses = PairLoss(small[0])(moved, shown)
        kept: list[int] = []
        for index in losses.argsort().tolist():
            if all(_degrees(starts[index], starts[other]) > _APART for other in kept):
                kept.append(index)
            if len(kept) == _ROUGH_KEPT:
                break
        return starts[kept], losses[kept]

    def _passes(
        self,
        grid: NetworkGrid,
        fixed_image: WorldImage,
        moving: WorldImage,
        starts: torch.Tensor,
        loss: PairLoss,
        factors: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best matrix on the way from each start, and its loss."""
        step_of = step_family(self.family)
        back = torch.linalg.inv(grid.world)
        current = starts
        shown = grid.resampled(moving, current)
        best, least = current.clone(), loss(shown.values, shown.inside)
        for factor in factors:
            fixed = fixed_image.values.expand_as(shown.values)
            step = self.network(shown.values, fixed, [factor], family=step_of)[-1].matrix
            current = current @ (grid.world @ step @ back)
            shown = grid.resampled(moving, current)
            value = loss(shown.values, shown.inside)
            better = value < least
            best[better], least[better] = current[better], value[better]
        return best, least


def _degrees(one: torch.Tensor, other: torch.Tensor) -> float:
    """Angle between the rotations nearest to two matrices."""
    turns = []
    for matrix in (one, other):
        left, _, right = torch.linalg.svd(matrix[:3, :3])
        turns.append(left @ right)
    cosine = ((turns[0].T @ turns[1]).trace() - 1) / 2
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


@functools.lru_cache(maxsize=1)
def _shipped(path: Path) -> AffinePairNetwork:
    return load_affine_pair_network(path)


def shipped_start(family: str = "affine") -> NetworkStart:
    """The initialisation by the network that came with the installation.

    Raises:
        CheckpointError: its file was removed or changed.
    """
    return NetworkStart(_shipped(SHIPPED_AFFINE), DenseAffine(pair_network(), family), family)
