"""The affine network: an estimator applied in a cascade on one grid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scripts.affine.estimators import KeypointEstimator, ParameterEstimator
from scripts.networks.described import DescribedNetwork
from scripts.pairwise.network_grid import WorkingGrid
from scripts.spatial.affine_parameters import Frame, compose, parameters_of
from scripts.spatial.matrix_fit import fit_matrix
from scripts.spatial.resampling import resample_by_matrix

__all__ = [
    "AffineNetwork",
    "CascadePass",
    "corner_points",
    "nearest_member",
]


@dataclass(frozen=True, eq=False)
class CascadePass:
    """Input and result of one pass of a cascade.

    Attributes:
        before: matrix that warped the moving image ``(B, 4, 4)``; no gradient.
        step: estimate between the fixed and that warped image ``(B, 4, 4)``.
        parameters: of the step, if the estimator gives any.
        matrix: the composed matrix, in the transform model ``(B, 4, 4)``.
    """

    before: torch.Tensor
    step: torch.Tensor
    parameters: torch.Tensor | None
    matrix: torch.Tensor


def corner_points(frame: Frame) -> torch.Tensor:
    """Corners of the volume, ``(2^d, d)`` mm along the frame's axes from its centre."""
    signs = itertools.product((-1.0, 1.0), repeat=frame.spatial_dims)
    return torch.tensor(list(signs), dtype=torch.float64) * frame.half_width


def nearest_member(matrix: torch.Tensor, family: str, frame: Frame) -> torch.Tensor:
    """The matrix of a transform model that moves the volume's corners most similarly to ``matrix``.

    Args:
        matrix: ``(B, 4, 4)``, in a frame with the axes of the world and centre 0.
        family: transform model.
        frame: of the network's grid.
    """
    d = frame.spatial_dims
    points = corner_points(frame).to(matrix.device).expand(len(matrix), -1, d)
    moved = points @ matrix[:, :d, :d].mT + matrix[:, None, :d, 3]
    local = fit_matrix(points, moved, family=family, ridge=0.0).matrix
    whole = torch.eye(4, dtype=matrix.dtype, device=matrix.device).repeat(len(matrix), 1, 1)
    whole[:, :d, :d], whole[:, :d, 3] = local[:, :d, :d], local[:, :d, d]
    return whole


class AffineNetwork(DescribedNetwork):
    """Estimates matrices of a transform model between images on the network's grid.

    Each of n passes sees the original moving image warped by the matrix composed so far, which
    takes one interpolation whatever the number of passes, and its step is composed with that
    matrix. The passes share their weights. ``rigid_anisotropic`` isn't closed under composition;
    there the nearest matrix of the model replaces the product.

    Args:
        grid: of the network.
        family: transform model.
        kind: ``parameters`` or ``keypoints``.
        pair: see `ParameterEstimator`.
        backbone: see `KeypointEstimator`.
        keypoints: see `KeypointEstimator`.
        width: of the networks.
        passes: number of passes of the cascade, at least 1.
        ridge: see `fit_matrix`.
        description: see `DescribedNetwork`.
    """

    def __init__(
        self,
        grid: WorkingGrid,
        family: str = "affine",
        kind: str = "parameters",
        pair: str = "channels",
        backbone: str = "unet",
        keypoints: int = 32,
        width: float = 0.25,
        passes: int = 1,
        ridge: float = 1e-4,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(description)
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        self.grid = grid
        self.frame = grid.frame
        self.family = family
        self.passes = passes
        self.estimator: ParameterEstimator | KeypointEstimator
        if kind == "parameters":
            self.estimator = ParameterEstimator(grid.shape, self.frame, family, pair, width)
        elif kind == "keypoints":
            self.estimator = KeypointEstimator(
                self.frame, family, keypoints, backbone, width, ridge
            )
        else:
            raise ValueError(f"kind must be 'parameters' or 'keypoints', got {kind!r}")

    def cascade(self, pair: torch.Tensor, passes: int | None = None) -> list[CascadePass]:
        """Results of all passes over pairs ``(B, 2, *shape)`` (fixed, moving; 0 to 1).

        Raises:
            ValueError: the number of passes is below 1, or the pair is on another grid.
        """
        count = self.passes if passes is None else passes
        if count < 1:
            raise ValueError(f"passes must be at least 1, got {count}")
        if pair.shape[1] != 2 or tuple(pair.shape[2:]) != self.grid.shape:
            raise ValueError(
                f"pairs must be (B, 2, {', '.join(map(str, self.grid.shape))}) on the network's "
                f"grid, got {tuple(pair.shape)}"
            )
        fixed, moving = pair[:, :1], pair[:, 1:]
        matrix = torch.eye(4, dtype=torch.float64, device=pair.device).repeat(len(pair), 1, 1)
        done: list[CascadePass] = []
        for number in range(count):
            before = matrix.detach()
            warped = moving if number == 0 else self.moved(moving, before)
            step, parameters = self.estimator(fixed, warped)
            matrix = step if number == 0 else compose(step, before)
            if number and self.family == "rigid_anisotropic":
                matrix = nearest_member(matrix, self.family, self.frame)
            done.append(CascadePass(before, step, parameters, matrix))
        return done

    def moved(self, moving: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, *shape)`` on the network's grid, warped by matrices."""
        affine = self.grid.affine
        with torch.autocast(moving.device.type, enabled=False):
            return resample_by_matrix(moving.float(), affine, matrix, affine, self.grid.shape)

    def residual(self, truth: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The correct step of a pass, in the transform model ``(B, 4, 4)``."""
        step = torch.linalg.solve(before, truth)
        if self.family != "rigid_anisotropic":
            return step
        return nearest_member(step, self.family, self.frame)

    def residual_parameters(self, truth: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The parameters of `residual`, ``(B, P)``."""
        return parameters_of(self.residual(truth, before), self.family, self.frame)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Matrices ``(B, 4, 4)`` float64 of pairs ``(B, 2, *shape)``: fixed to moving, mm."""
        return self.cascade(pair)[-1].matrix
