"""The affine transform of one pair, by gradient descent over a pyramid from several starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scripts.registration.images import WorldImage, reduced, reduction_factors, require_contrast
from scripts.registration.initialisation import starting_matrices
from scripts.registration.moved import counted_of_both, moved_by
from scripts.registration.network_start import shipped_start
from scripts.registration.similarity import PairLoss
from scripts.settings.refine import NETWORK, PairSettings
from scripts.spatial.affine_parameters import (
    FAMILIES,
    Frame,
    matrix_of,
    parameter_count,
    parameters_of,
)

__all__ = ["AffineRefinement", "AffineResult", "level_of", "start_in_family"]

_KEPT = 3  # candidates that continue after the coarsest level
_FIRST_STEP, _LAST_STEP = 0.5, 0.01  # r.m.s. movement of a step, voxels of the level
_SHRINK = 0.4  # of the step, after each window without progress
_VOLUMES = (0.05, 20.0)  # allowed determinants of a transform between two anatomies


@dataclass(frozen=True)
class AffineResult:
    """Result of an affine registration.

    Attributes:
        matrix: ``(4, 4)`` float64, fixed point to moving point, RAS mm.
        loss: at the finest level.
        start_loss: of the given start, or of the identity, at the same level.
        levels: per level: reduction, candidates, gradient steps, the best loss.
    """

    matrix: torch.Tensor
    loss: float
    start_loss: float
    levels: list[dict[str, float]] = field(default_factory=list)


class AffineRefinement:
    """Adam on the parameters of a transform model, coarse to fine, keeping the best candidate.

    A candidate is ``R(start) F(parameters)``: the start's rigid part, then a matrix of the model
    that begins with the start's scales and shears. The product stays in the model, and near any
    rotation the angles are near 0, so that no rotation is special.

    Parameters are scaled so that one unit moves the image's points by one millimetre r.m.s. The
    steps of a level begin at half a voxel. A window without progress shrinks them and returns to
    the best candidate, until they are a hundredth of a voxel or the iterations of the level are
    used up. The coarsest level uses plain correlation, which has a larger capture range than a
    local one.

    The result is compared with the start at the finest level, and is never worse.

    Args:
        family: transform model, one of `scripts.spatial.affine_parameters.FAMILIES`.
        starts: initialisations (`starting_matrices`) to try besides the given start; ``network``:
            that of the affine network that ships (`NetworkStart`).
        levels: reductions, coarse to fine, in units of the fixed image's smallest voxel side.
        iterations: largest number of gradient steps per level.
        window: number of steps in which the loss must improve by ``tolerance``.
        tolerance: of the loss.
        similarity: for all levels but the coarsest.
        correlation_window: voxels, of the local correlation.
    """

    def __init__(
        self,
        family: str = "affine",
        starts: Sequence[str] = ("identity", "centre", "axes"),
        levels: Sequence[int] = (4, 2),
        iterations: int = 80,
        window: int = 8,
        tolerance: float = 1e-4,
        similarity: str = "local_correlation",
        correlation_window: int = 5,
    ) -> None:
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        self.family = family
        self.starts = tuple(starts)
        self.network_start = shipped_start(family) if NETWORK in self.starts else None
        self.levels = tuple(levels)
        self.iterations = iterations
        self.window = window
        self.tolerance = tolerance
        self.similarity = similarity
        self.correlation_window = correlation_window

    @classmethod
    def of(cls, settings: PairSettings) -> AffineRefinement:
        """The registration with the settings of a block."""
        return cls(
            settings.family, settings.starts, settings.levels, settings.iterations,
            settings.window, settings.tolerance, settings.similarity, settings.correlation_window,
        )  # fmt: skip

    def __call__(
        self, fixed: WorldImage, moving: WorldImage, start: torch.Tensor | None = None
    ) -> AffineResult:
        """Estimate the transform.

        Args:
            fixed: the fixed image.
            moving: the moving image, on any grid.
            start: ``(4, 4)`` or ``(S, 4, 4)``, in the transform model (a network's estimate, say).

        Raises:
            ValueError: an image is constant or not finite, or a start isn't in the transform model.
        """
        require_contrast(fixed, moving)
        device = fixed.values.device
        frame = Frame.of_grid(fixed.affine, fixed.shape).to(device)
        eye = torch.eye(4, dtype=torch.float64, device=device)
        given = eye[None] if start is None else start.to(device, torch.float64).reshape(-1, 4, 4)
        parameters_of(given, self.family, frame)
        candidates = self._candidates(fixed, moving, None if start is None else given)

        reports: list[dict[str, float]] = []
        for number, size in enumerate(self.levels):
            finest = number == len(self.levels) - 1
            similarity = "correlation" if number == 0 and not finest else self.similarity
            small = [level_of(image, fixed, size) for image in (fixed, moving)]
            loss = PairLoss(small[0], similarity, self.correlation_window)
            search = _Descent(small[0], small[1], loss, self.family, frame, size)
            candidates, losses, steps = search.run(
                candidates, self.iterations, self.window, self.tolerance
            )
            reports.append(
                {"reduction": size, "candidates": len(losses), "steps": steps,
                 "loss": float(losses.min())}
            )  # fmt: skip
            order = losses.argsort()[: _KEPT if number == 0 else 1]
            candidates = candidates[order]
        final = torch.cat([candidates, given])
        losses = search.losses(final)
        start_loss = float(losses[len(candidates) :].min())
        best = int(losses.argmin())
        return AffineResult(final[best], float(losses[best]), start_loss, reports)

    def _candidates(
        self, fixed: WorldImage, moving: WorldImage, given: torch.Tensor | None
    ) -> torch.Tensor:
        """All matrices to descend from ``(S, 4, 4)``; the identity if there are no others."""
        every = [] if given is None else [given]
        guessed = [kind for kind in self.starts if kind != NETWORK]
        if guessed:
            every.append(starting_matrices(fixed, moving, guessed))
        if self.network_start is not None:
            estimate, _ = self.network_start(fixed, moving, given)
            every.append(estimate[None])
        if not every:
            return torch.eye(4, dtype=torch.float64, device=fixed.values.device)[None]
        return torch.cat(every)


def start_in_family(matrix: torch.Tensor, family: str, image: WorldImage) -> bool:
    """Whether a matrix ``(4, 4)`` is in a transform model, on the fixed image's grid."""
    try:
        parameters_of(matrix[None], family, Frame.of_grid(image.affine, image.shape))
    except ValueError:
        return False
    return True


def level_of(image: WorldImage, fixed: WorldImage, reduction: int) -> WorldImage:
    """An image at a level of the fixed one's pyramid: voxels of similar size, nearly cubic."""
    size = reduction * float(fixed.spacing.min())
    return reduced(image, reduction_factors(image.spacing, size))


class _Descent:
    """Optimises several candidates at one level at once.

    Args:
        fixed: the level's fixed image.
        moving: the level's moving image.
        loss: of warped images.
        family: transform model.
        frame: of the full fixed grid, the same at all levels.
        size: reduction of the level.
    """

    def __init__(
        self,
        fixed: WorldImage,
        moving: WorldImage,
        loss: PairLoss,
        family: str,
        frame: Frame,
        size: float,
    ) -> None:
        self.fixed, self.moving, self.loss = fixed, moving, loss
        self.family, self.frame = family, frame
        self.voxel = float(np.cbrt(np.prod(fixed.spacing))) if len(fixed.shape) == 3 else float(
            np.sqrt(np.prod(fixed.spacing))
        )  # fmt: skip
        self.rigid = parameter_count("rigid", frame.spatial_dims)
        self.effect = self._effects()

    def matrices(self, bases: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """``(S, 4, 4)`` starts as their rigid part, with their scales and shears as offsets."""
        rigid, rest = bases[:, : self.rigid], bases[:, self.rigid :]
        turned = torch.cat([torch.zeros_like(rigid), rest], dim=1) + offsets / self.effect
        return matrix_of(rigid, "rigid", self.frame) @ matrix_of(turned, self.family, self.frame)

    def losses(self, matrices: torch.Tensor) -> torch.Tensor:
        """Losses ``(S,)``, without gradients."""
        with torch.no_grad():
            return self._loss(matrices)

    def run(
        self, matrices: torch.Tensor, iterations: int, window: int, tolerance: float
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Descend from each matrix; return the best of each, its loss, and the largest step
        count."""
        bases = parameters_of(matrices, self.family, self.frame)
        current = torch.zeros_like(bases).requires_grad_(True)
        best = torch.zeros_like(bases)
        best_loss = torch.full_like(bases[:, 0], torch.inf)
        marked = best_loss.clone()
        step = torch.full_like(best_loss, _FIRST_STEP * self.voxel)
        mean, square = torch.zeros_like(bases), torch.zeros_like(bases)
        since = torch.zeros_like(best_loss)
        age = torch.zeros_like(best_loss)
        active = torch.ones_like(best_loss, dtype=torch.bool)
        taken = 0
        for number in range(iterations + 1):
            who = active.nonzero()[:, 0]
            part = current.detach()[who].requires_grad_(True)
            losses = self._loss(self.matrices(bases[who], part)).double()
            better = losses.detach() < best_loss[who]
            won = who[better]
            best[won], best_loss[won] = part.detach()[better], losses.detach()[better]
            if number == iterations:
                break
            # A window without progress: smaller steps, from the best candidate.
            since[who] += 1
            progressed = best_loss < marked - tolerance
            marked = torch.where(progressed, best_loss, marked)
            since = torch.where(progressed, torch.zeros_like(since), since)
            stuck = since >= window
            step = torch.where(stuck, step * _SHRINK, step)
            since = torch.where(stuck, torch.zeros_like(since), since)
            (slope,) = torch.autograd.grad(losses.sum(), part)
            taken += 1
            gradient = torch.zeros_like(bases)
            gradient[who] = torch.nan_to_num(slope)
            mean = 0.8 * mean + 0.2 * gradient
            square = 0.95 * square + 0.05 * gradient.square()
            age = age + 1
            unbiased = mean / (1 - 0.8**age)[:, None]
            scale = (square / (1 - 0.95**age)[:, None]).sqrt() + 1e-12
            following = current.detach() - step[:, None] * unbiased / scale
            restart = stuck[:, None]
            current = torch.where(restart, best, torch.where(active[:, None], following, current))
            current = current.detach()
            mean = torch.where(restart, torch.zeros_like(mean), mean)
            square = torch.where(restart, torch.zeros_like(square), square)
            age = torch.where(stuck, torch.zeros_like(age), age)
            active = active & (step >= _LAST_STEP * self.voxel)
            if not bool(active.any()):
                break
        return self.matrices(bases, best).detach(), best_loss, taken

    def _loss(self, matrices: torch.Tensor) -> torch.Tensor:
        moved, covered = moved_by(matrices, self.fixed, self.moving)
        loss = self.loss(moved, covered, counted_of_both(matrices, self.fixed, self.moving))
        size = torch.linalg.det(matrices.detach()[:, :3, :3])
        sound = (size > _VOLUMES[0]) & (size < _VOLUMES[1])
        return torch.where(sound, loss, torch.full_like(loss, 4.0))

    def _effects(self) -> torch.Tensor:
        """R.m.s. movement of the grid's points, mm, per unit of each parameter, ``(P,)``."""
        d = self.frame.spatial_dims
        half = self.frame.half_width
        eye = torch.eye(parameter_count(self.family, d), dtype=torch.float64, device=half.device)
        little = 1e-4
        matrices = matrix_of(little * eye, self.family, self.frame)
        world = self.frame.world
        moves = torch.linalg.inv(world) @ matrices @ world - torch.eye(4).to(world)
        # Over a uniform box, the mean square of a coordinate is a third of its half width squared.
        spread = torch.zeros(3, dtype=torch.float64, device=half.device)
        spread[:d] = half.square() / 3
        power = (moves[:, :3, :3].square() * spread).sum((1, 2)) + moves[:, :3, 3].square().sum(1)
        return power.sqrt() / little
