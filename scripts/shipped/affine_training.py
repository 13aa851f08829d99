"""Training of the affine network that ships, on generated pairs alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from scripts.errors import ConfigurationError
from scripts.networks.grids import averaged
from scripts.networks.precision import autocast
from scripts.shipped.affine_network import AffinePairNetwork, AffinePass
from scripts.shipped.affine_pairs import AffinePair, AffinePairGenerator
from scripts.shipped.training import GeneratedTraining, move_left
from scripts.spatial.matrix_fit import fit_matrix

__all__ = ["AffinePairTraining", "affine_pair_loss"]

_LAST_STEPS = 500  # steps at the end of the training whose mean is stored with the network
_BOX = 0.6  # of the half widths: corners of the box whose distance is the loss
_SEEN = 0.05  # of the maximum: tissue


def affine_pair_loss(
    network: AffinePairNetwork, pair: AffinePair, dense: float, dtype: str
) -> dict[str, torch.Tensor]:
    """How far the corners of a box come to lie from where they belong, in voxels.

    The truth is the affine transform that fits the true move of the tissue best.

    Args:
        network: in training.
        pair: one pair.
        dense: weight of the mean distance between each point and its true place.
        dtype: of the convolutions.

    Returns:
        ``loss``, ``error`` (after the last pass) and ``move`` (what it was before).
    """
    scale = pair.moving.amax().clamp_min(1e-6).reciprocal()
    moving, fixed = pair.moving * scale, pair.fixed * scale
    with autocast("cpu", dtype):
        passes = network(moving, fixed)
    half = averaged(pair.move, 2).flatten(2).mT.double()
    points = passes[-1].points
    tissue = averaged((fixed > _SEEN).float(), 2).flatten(1)
    truth = fit_matrix(points, points + half, tissue + 1e-6).matrix
    corners = _corners(moving.shape[2:])
    there = _moved(truth, corners)
    distances = [_length(_moved(one.matrix, corners) - there).mean() for one in passes]
    total = torch.stack(distances).sum() / len(passes)
    if dense:
        total = total + dense * sum(_astray(one, pair, fixed) for one in passes)
    before = _length(corners - there).mean()
    return {"loss": total.float(), "error": distances[-1].detach(), "move": before}


def _astray(one: AffinePass, pair: AffinePair, fixed: torch.Tensor) -> torch.Tensor:
    """Mean distance of a pass's points in the tissue from their true places."""
    factor = one.reduction
    away = averaged(pair.move, factor).flatten(2).mT.double()
    there = _moved(torch.linalg.inv(one.before), one.points + away)
    weight = averaged((fixed > _SEEN).float(), factor).flatten(1)
    return (_length(one.moved - there) * weight).sum() / weight.sum().clamp_min(1)


def _corners(shape: torch.Size) -> torch.Tensor:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    return (signs * torch.tensor(shape, dtype=torch.float64) / 2 * _BOX)[None]


def _moved(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return points @ matrix[:, :3, :3].mT + matrix[:, None, :3, 3]


def _length(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors.square().sum(-1) + 1e-2).sqrt()


class AffinePairTraining(GeneratedTraining[AffinePairNetwork]):
    """Steps of a few pairs each.

    Args:
        network: at its start.
        pairs: what it is trained on.
        folder: see `GeneratedTraining`.
        steps: see `GeneratedTraining`.
        lr: see `GeneratedTraining`.
        batch: pairs of a step, whose gradients are averaged.
        dense: see `affine_pair_loss`.
        dtype: of the convolutions.
        kept: see `GeneratedTraining`.
        saved: see `GeneratedTraining`.
        schedule: see `GeneratedTraining`.
        schedule_epochs: see `GeneratedTraining`.
        schedule_factor: see `GeneratedTraining`.

    Raises:
        ConfigurationError: the network's last pass is on a reduced grid.
    """

    title = "Affine registration of tract densities and images it has never seen"

    def __init__(
        self,
        network: AffinePairNetwork,
        pairs: AffinePairGenerator,
        folder: str | Path,
        steps: int = 4000,
        lr: float = 1.5e-3,
        batch: int = 2,
        dense: float = 0.1,
        dtype: str = "bfloat16",
        kept: int = 10,
        saved: int = 50,
        schedule: str = "late_cosine",
        schedule_epochs: int = 10,
        schedule_factor: float = 0.1,
    ) -> None:
        super().__init__(
            network, folder, steps, lr, kept, saved, schedule, schedule_epochs, schedule_factor
        )
        if network.passes[-1] != 1:
            raise ConfigurationError(
                f"network_def.passes = {network.passes}: must end with 1, so that its last points "
                "are those of the truth"
            )
        self.pairs = pairs
        self.batch = batch
        self.dense = dense
        self.dtype = dtype

    @property
    def plan(self) -> dict[str, Any]:
        """Settings that a resumed run must not change, besides the steps of a falling rate."""
        own = {"lr": self.lr, "batch": self.batch, "dense": self.dense, "dtype": self.dtype}
        return {**self.pairs.plan, **own, **self._schedule}

    @property
    def share_left(self) -> float:
        """See `GeneratedTraining.share_left`."""
        return move_left(self.curve[-_LAST_STEPS:])

    def terms(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """See `GeneratedTraining.terms`; the gradients of all pairs but the last are added here."""
        total: dict[str, float] = {"error": 0.0, "move": 0.0}
        for number in range(self.batch):
            pair = self.pairs[step * self.batch + number]
            terms = affine_pair_loss(self.network, pair, self.dense, self.dtype)
            terms["loss"] = terms["loss"] / self.batch
            for name in total:
                total[name] += float(terms[name]) / self.batch
            if number < self.batch - 1:
                terms["loss"].backward()
        return {"loss": terms["loss"]}, total
