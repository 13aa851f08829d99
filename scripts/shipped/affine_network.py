"""A network that estimates the affine transform of a pair, also of images unlike its training's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scripts.networks.grids import averaged
from scripts.shipped.centred_grid import centred_grid, centred_points
from scripts.shipped.pair_unet import FIELD_RESOLUTION, PairUNet
from scripts.spatial.matrix_fit import fit_matrix
from scripts.spatial.resampling import resample_by_matrix

__all__ = ["AffinePairNetwork", "AffinePass"]

_RIDGE = 1e-3
_PRESENT = 0.02  # of the maximum: voxels above it, in either image, count
_LEAST = 1e-6  # weight of the others, so that an empty pair has a fit


@dataclass(frozen=True, eq=False)
class AffinePass:
    """The result of a pass.

    Attributes:
        before: ``(B, 4, 4)``, the matrix that the moving image was warped by.
        matrix: ``(B, 4, 4)``, the matrix after the pass.
        points: ``(B, K, 3)`` of the fixed image.
        moved: ``(B, K, 3)``, their estimated positions after ``before``.
        present: ``(B, K)``, whether an image has tissue at the point.
        reduction: factor by which the grid of the points is reduced.
    """

    before: torch.Tensor
    matrix: torch.Tensor
    points: torch.Tensor
    moved: torch.Tensor
    present: torch.Tensor
    reduction: int


class AffinePairNetwork(PairUNet):
    """A U-Net finds where points of the fixed image lie, and which of them to trust.

    Its input are the images and the forces between them (`PairForces`), its output a displacement
    and the logit of a weight for each voxel of a grid reduced by 2. The matrix is their weighted
    least-squares fit in closed form, in any transform model. Each pass sees the original moving
    image, warped by the matrix so far.

    All coordinates are voxels from the centre of the grid, whose voxels are cubic.

    Args:
        enc_features: see `PairUNet`.
        dec_features: see `PairUNet`.
        passes: see `PairUNet`.
        seed: see `PairUNet`.
        description: see `PairUNet`.
        inputs: see `PairUNet`.
    """

    usual_passes = (2, 1, 1)
    further = 1
    kind = "affine pair registration"
    called = "affine network"

    def forward(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        passes: Sequence[int] | None = None,
        start: torch.Tensor | None = None,
        family: str = "affine",
    ) -> list[AffinePass]:
        """The results of all passes.

        Args:
            moving: ``(B, 1, *shape)``, from 0 to about 1.
            fixed: the same shape, on the same scale.
            passes: replace the network's.
            start: ``(B, 4, 4)`` float64, fixed to moving points; None: the identity.
            family: transform model of a pass's step.
        """
        batch = len(moving)
        matrix = torch.eye(4, dtype=torch.float64, device=moving.device).repeat(batch, 1, 1)
        if start is not None:
            matrix = start
        done: list[AffinePass] = []
        for factor in self.passes if passes is None else passes:
            done.append(self._one_pass(moving, fixed, factor, matrix.detach(), family))
            matrix = done[-1].matrix
        return done

    def _one_pass(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        factor: int,
        before: torch.Tensor,
        family: str,
    ) -> AffinePass:
        shape = moving.shape[2:]
        with torch.no_grad(), torch.autocast(moving.device.type, enabled=False):
            target = averaged(fixed, factor)
            grid = centred_grid(shape, factor)
            warped = resample_by_matrix(
                averaged(moving, factor), grid, before, grid, target.shape[2:]
            )
            inputs = self.inputs(self.inputs.copies(warped), self.inputs.copies(target))
            level = torch.maximum(warped, target) > _PRESENT
            present = averaged(level.float(), FIELD_RESOLUTION).flatten(1)
        output = self.unet(inputs.contiguous(memory_format=torch.channels_last_3d)).float()
        with torch.autocast(moving.device.type, enabled=False):
            points = centred_points(shape, factor * FIELD_RESOLUTION)[None].to(moving.device)
            moved = points + factor * output[:, :3].flatten(2).mT.double()
            points = points.expand_as(moved)
            weight = output[:, 3].flatten(1).sigmoid() * present + _LEAST
            step = fit_matrix(points, moved, weight, family, _RIDGE).matrix
        return AffinePass(before, before @ step, points, moved, present, factor * FIELD_RESOLUTION)
