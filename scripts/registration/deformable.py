"""Deformable registration of a pair: a stationary velocity, alone or with the affine matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from scripts.losses.smoothness import SmoothnessLoss
from scripts.networks.integration import GridFlow, VelocityIntegration
from scripts.registration.affine import level_of
from scripts.registration.images import WorldImage, counts, require_contrast
from scripts.registration.moved import counted_of_both, moved_by
from scripts.registration.similarity import PairLoss
from scripts.registration.start_field import StartField, vectors_on_grid
from scripts.settings.refine import RefineConfig
from scripts.spatial.affine_parameters import (
    FAMILIES,
    Frame,
    matrix_of,
    parameter_count,
    parameters_of,
)
from scripts.spatial.field_extension import extended_field
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.unfolding import unfolded_velocity

__all__ = ["ElasticRefinement", "ElasticResult"]

_FIRST_STEP, _LAST_STEP = 0.2, 0.02  # of the velocity, voxels of the level
_SHRINK = 0.5
_AFFINE_STEP = 0.05  # of the matrix's parameters in a joint registration, as a part of half widths


@dataclass(frozen=True)
class ElasticResult:
    """Result of a registration: a fixed point x corresponds to ``matrix (x + displacement(x))``.

    Attributes:
        matrix: ``(4, 4)`` float64, RAS mm.
        displacement: ``(1, d, *shape)`` in voxels, on the fixed grid.
        inverse: its inverse, also on the fixed grid: a moving point y corresponds to
            x = z + inverse(z) with z = matrix^-1 y.
        loss: similarity plus weighted smoothness at the finest level.
        start_loss: the same for the start.
        levels: per level: reduction, gradient steps, the best loss.
        jacobian: `jacobian_summary` of both displacements on the fixed grid.
    """

    matrix: torch.Tensor
    displacement: torch.Tensor
    inverse: torch.Tensor
    loss: float
    start_loss: float
    levels: list[dict[str, float]] = field(default_factory=list)
    jacobian: dict[str, dict[str, float]] = field(default_factory=dict)


class ElasticRefinement:
    """Adam on a stationary velocity over a pyramid, starting from an affine transform.

    The moving image is sampled once, through the displacement and then the matrix. The velocity's
    grid is that of the level. A window without progress shrinks the steps. The best velocity is
    resampled to the next level. It is smoothed where its flow is close to folding
    (`unfolded_velocity`). The result is compared with the start and is never worse. In a hole of
    the fixed image the velocity continues the velocity around it.

    Args:
        levels: reductions, coarse to fine, in units of the fixed image's smallest voxel side.
        iterations: largest number of gradient steps per level.
        window: number of steps in which the loss must improve by ``tolerance``.
        tolerance: of the loss.
        similarity: see `PairLoss`.
        correlation_window: voxels, of the local correlation.
        smoothness_weight: of the velocity's squared gradient.
        int_steps: squarings of the integration.
        family: also optimise the matrix, in this transform model; None: keep it.
    """

    def __init__(
        self,
        levels: Sequence[int] = (4, 2),
        iterations: int = 60,
        window: int = 8,
        tolerance: float = 1e-4,
        similarity: str = "local_correlation",
        correlation_window: int = 5,
        smoothness_weight: float = 0.5,
        int_steps: int = 7,
        family: str | None = None,
    ) -> None:
        if family is not None and family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)} or None, got {family!r}")
        self.levels = tuple(levels)
        self.iterations = iterations
        self.window = window
        self.tolerance = tolerance
        self.similarity = similarity
        self.correlation_window = correlation_window
        self.smoothness_weight = smoothness_weight
        self.integration = VelocityIntegration(int_steps)
        self.family = family

    @classmethod
    def of(cls, settings: RefineConfig, family: str | None = None) -> ElasticRefinement:
        """The registration with the settings of a block; ``family`` as for the class."""
        return cls(
            settings.levels, settings.iterations, settings.window, settings.tolerance,
            settings.similarity, settings.correlation_window, settings.smoothness_weight,
            settings.int_steps, family,
        )  # fmt: skip

    def __call__(
        self,
        fixed: WorldImage,
        moving: WorldImage,
        start: torch.Tensor | None = None,
        field: StartField | None = None,
    ) -> ElasticResult:
        """Estimate the velocity, and with ``family`` the matrix.

        A start whose velocity is known is where the velocity begins. One that is known only as a
        displacement stays as it is, and the velocity's flow comes before it. Either way, if no step
        improves the start, the result is exactly the start.

        Args:
            fixed: the fixed image.
            moving: the moving image.
            start: ``(4, 4)``; in the transform model if ``family`` is given. None: the identity.
            field: on the fixed grid, before the matrix; None: no displacement.

        Raises:
            ValueError: an image is constant or not finite, or the start isn't in the transform
            model.
        """
        require_contrast(fixed, moving)
        device = fixed.values.device
        given = torch.eye(4, dtype=torch.float64, device=device)
        given = (given if start is None else start.to(given)).reshape(1, 4, 4)
        matrix = given
        first = None if field is None else field.velocity
        held = field if first is None else None
        velocity, grid = first, None if first is None else fixed
        reports: list[dict[str, float]] = []
        for size in self.levels:
            small = [level_of(image, fixed, size) for image in (fixed, moving)]
            begun = vectors_on_grid(velocity, grid, small[0])
            level = _Level(self, small[0], small[1], fixed, held)
            velocity, matrix, steps, loss = level.run(begun, matrix)
            if small[0].hole is not None:
                velocity = extended_field(velocity, counts(small[0].hole))
            grid = small[0]
            reports.append({"reduction": size, "steps": steps, "loss": loss})
        assert velocity is not None and grid is not None
        velocity = unfolded_velocity(GridFlow(self.integration, grid.shape), velocity)
        start_loss = level.loss(vectors_on_grid(first, fixed, grid), given)
        loss = level.loss(velocity, matrix)
        if loss < start_loss:
            forward, inverse = (
                vectors_on_grid(u, grid, fixed) for u in self.integration.both(velocity, grid.shape)
            )
            if held is not None:
                forward, inverse = held.after(forward), held.inverse_before(inverse)
        else:
            matrix, loss = given, start_loss
            still = vectors_on_grid(None, None, fixed)
            kept = StartField(still, still) if field is None else field
            forward, inverse = kept.forward, kept.inverse
        jacobian = {
            "displacement": jacobian_summary(forward[0]),
            "inverse": jacobian_summary(inverse[0]),
        }
        return ElasticResult(matrix[0], forward, inverse, loss, start_loss, reports, jacobian)


class _Level:
    """Optimises one level.

    Args:
        owner: the registration with its settings.
        fixed: the level's fixed image.
        moving: the level's moving image.
        full: the full fixed image, whose frame the parameters refer to.
        field: the start, on the full grid.
    """

    def __init__(
        self,
        owner: ElasticRefinement,
        fixed: WorldImage,
        moving: WorldImage,
        full: WorldImage,
        field: StartField | None = None,
    ) -> None:
        self.owner, self.fixed, self.moving = owner, fixed, moving
        self.pair = PairLoss(fixed, owner.similarity, owner.correlation_window)
        self.smoothness = SmoothnessLoss(fixed.spacing.tolist())
        self.frame = Frame.of_grid(full.affine, full.shape).to(fixed.values.device)
        self.field = None if field is None else field.on(full, fixed)

    def loss(self, velocity: torch.Tensor, matrix: torch.Tensor) -> float:
        """The loss without gradients."""
        with torch.no_grad():
            return float(self._loss(velocity, matrix))

    def run(
        self, velocity: torch.Tensor, matrix: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int, float]:
        """The best velocity, the best matrix, the number of steps, the loss."""
        owner, family = self.owner, self.owner.family
        current = velocity.detach().clone().requires_grad_(True)
        groups = [{"params": [current], "lr": _FIRST_STEP}]
        turn: torch.Tensor | None = None
        if family is not None:
            parameters = parameters_of(matrix, family, self.frame)
            rigid = parameter_count("rigid", self.frame.spatial_dims)
            base = matrix_of(parameters[:, :rigid], "rigid", self.frame)
            rest = torch.cat([torch.zeros_like(parameters[:, :rigid]), parameters[:, rigid:]], 1)
            turn = torch.zeros_like(parameters).requires_grad_(True)
            groups.append({"params": [turn], "lr": self._turning_step()})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        best, best_matrix, best_loss = velocity.detach().clone(), matrix, float("inf")
        marked, since, shrunk, step = float("inf"), 0, 1.0, 0
        for step in range(owner.iterations + 1):
            at = matrix
            if turn is not None and family is not None:
                at = base @ matrix_of(rest + turn, family, self.frame)
            total = self._loss(current, at)
            value = float(total.detach())
            if value < best_loss:
                best, best_matrix = current.detach().clone(), at.detach()
                best_loss = value
            if value < marked - owner.tolerance:
                marked, since = value, 0
            else:
                since += 1
            if since >= owner.window:
                since, shrunk = 0, shrunk * _SHRINK
                for group in optimizer.param_groups:
                    group["lr"] *= _SHRINK
            if step == owner.iterations or _FIRST_STEP * shrunk < _LAST_STEP:
                break
            wanted = [current] if turn is None else [current, turn]
            slopes = torch.autograd.grad(total, wanted)
            for leaf, slope in zip(wanted, slopes, strict=True):
                leaf.grad = slope
            optimizer.step()
        return best, best_matrix, step, best_loss

    def _loss(self, velocity: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        displacement = self.owner.integration(velocity, self.fixed.shape)
        if self.field is not None:
            displacement = self.field.after(displacement)
        moved, covered = moved_by(matrix, self.fixed, self.moving, displacement)
        smooth = self.owner.smoothness_weight * self.smoothness(velocity)
        counted = counted_of_both(matrix, self.fixed, self.moving, displacement)
        return self.pair(moved, covered, counted)[0] + smooth

    def _turning_step(self) -> float:
        """About a twentieth of a voxel at the image's border; the velocity does the rest."""
        half = self.frame.half_width.min()
        return _AFFINE_STEP * float(torch.as_tensor(self.fixed.spacing).min() / half)
