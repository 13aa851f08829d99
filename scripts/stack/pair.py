"""The map from one section to another, by descent through the resolutions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scripts.stack.objective import Measure, Objective
from scripts.stack.planar import PlanarModel, Plane, corner_distance
from scripts.stack.pyramid import Level, Pyramid, usable_levels
from scripts.stack.search import MIRROR, Start, search_starts

__all__ = ["PairRegistration", "PairResult", "Schedule"]

logger = logging.getLogger(__name__)

_STILL = (0.04, 0.01)  # pixels of a level, and of the finest: a smaller step ends it
_DAMPING = (1e-4, 1e-8, 1e6)  # first, least and largest share of the curvature's diagonal
_LONGEST = 10.0  # times Gauss-Newton's step, where it proved too short
_EQUAL = 1e-6  # losses this near are equal: float32 sums are no more exact


@dataclass(frozen=True)
class Schedule:
    """How long each level is descended.

    Attributes:
        reductions: of the levels, coarse to fine.
        epochs: most steps of each.
        rates: Adam's, of each.
        early_stopping: end a level of Adam whose loss stays the same.
        window: steps that are compared for it.
        tolerance: largest minus smallest loss of them that counts as the same.
    """

    reductions: Sequence[int] = (8, 4, 2, 1)
    epochs: Sequence[int] = (300, 300, 300, 300)
    rates: Sequence[float] = (1e-3, 1e-3, 5e-4, 1e-4)
    early_stopping: bool = True
    window: int = 15
    tolerance: float = 1e-5


@dataclass(frozen=True)
class PairResult:
    """How two sections match.

    Attributes:
        matrix: ``(3, 3)``, a physical point of the first section to the second one's.
        mirrored: whether it mirrors.
        loss: at the finest level, without the regularisation.
        steps: of each level, coarse to fine; 0 for one that was left out.
        correlation_before: over the overlap of the unregistered sections, at the finest level.
        correlation: after.
        overlap: share of the first section.
    """

    matrix: np.ndarray
    mirrored: bool
    loss: float
    steps: tuple[int, ...]
    correlation_before: float
    correlation: float
    overlap: float


class PairRegistration:
    """Registers one section to another.

    Args:
        model: family of the maps.
        objective: what is minimised.
        schedule: of the levels.
        regularisation: weight of the squared deviations of scale and shear.
        optimizer: ``gauss_newton`` (damped, each step lowers the loss) or ``adam``.
        search_angle: largest rotation that the start is searched among, degrees; None starts at
            the identity.
        flips: whether the search tries mirrored sections.
        init_std: standard deviation of Adam's random start.
        seed: of it.
        log_levels: log the loss after each level.
    """

    def __init__(
        self,
        model: PlanarModel,
        objective: Objective,
        schedule: Schedule,
        regularisation: float = 0.5,
        optimizer: str = "gauss_newton",
        search_angle: float | None = 6.0,
        flips: bool = False,
        init_std: float = 1e-3,
        seed: int = 0,
        log_levels: bool = False,
    ) -> None:
        self.model, self.objective, self.schedule = model, objective, schedule
        self.regularisation, self.optimizer = regularisation, optimizer
        self.search_angle, self.flips = search_angle, flips
        self.init_std, self.seed = init_std, seed
        self.log_levels = log_levels

    def __call__(self, fixed: Pyramid, moving: Pyramid, number: int = 0) -> PairResult:
        """Find the map.

        Args:
            fixed: the section that the map starts from.
            moving: the one that it leads to, of the same shape.
            number: of the pair: Adam's random start differs between pairs, not between runs.
        """
        levels = usable_levels(fixed.plane.shape, self.schedule.reductions)
        finest = levels[-1]
        still = self.objective(fixed[finest], moving[finest], np.eye(3), slopes=False)
        if torch.equal(fixed.image, moving.image) and still.correlation > 1 - _EQUAL:
            return self._result(np.eye(3), False, still, still, {})
        coarsest = fixed[levels[0]], moving[levels[0]]
        outcomes = []
        for start in self._starts(*coarsest):
            descent = _Descent(self, fixed.plane, start)
            steps = {levels[0]: descent.run(*coarsest, levels[0], number)}
            outcomes.append((descent.loss, steps, descent))
        loss, steps, descent = min(outcomes, key=lambda one: one[0])
        self._log(number, levels[0], steps, loss)
        for level in levels[1:]:
            steps[level] = descent.run(fixed[level], moving[level], level, number)
            self._log(number, level, steps, descent.loss)
        return self._best(fixed[finest], moving[finest], descent, still, steps)

    def _starts(self, fixed: Level, moving: Level) -> list[Start]:
        identity = Start(np.eye(3), False)
        if self.search_angle is None:
            return [identity]
        return search_starts(fixed, moving, self.search_angle, self.flips) or [identity]

    def _best(
        self, fixed: Level, moving: Level, descent: _Descent, still: Measure, steps: dict[int, int]
    ) -> PairResult:
        """The descent's map, unless its start or the identity is as good at the finest level."""
        mirrored = descent.start.mirrored
        candidates = [(np.eye(3), False, still)]
        if not np.array_equal(descent.start.matrix, np.eye(3)) or mirrored:
            first = descent.whole(descent.first)
            at = self.objective(fixed, moving, first, slopes=False)
            candidates.append((first, mirrored, at))
        assert descent.measured is not None
        candidates.append((descent.whole(descent.parameters), mirrored, descent.measured))
        best = candidates[0]
        for candidate in candidates[1:]:
            if candidate[2].loss < best[2].loss - _EQUAL:
                best = candidate
        return self._result(best[0], best[1], still, best[2], steps)

    def _result(
        self, matrix: np.ndarray, mirrored: bool, before: Measure, after: Measure,
        steps: dict[int, int],
    ) -> PairResult:  # fmt: skip
        counts = tuple(steps.get(level, 0) for level in range(len(self.schedule.reductions)))
        return PairResult(
            matrix, mirrored, after.loss, counts, before.correlation, after.correlation,
            after.overlap,
        )  # fmt: skip

    def _log(self, number: int, level: int, steps: dict[int, int], loss: float) -> None:
        if self.log_levels:
            logger.info(
                "pair %d, reduction %d: %d steps, loss %.6f",
                number, self.schedule.reductions[level], steps[level], loss,
            )  # fmt: skip


class _Descent:
    """The parameters of one descent."""

    def __init__(self, owner: PairRegistration, plane: Plane, start: Start) -> None:
        self.owner, self.plane, self.start = owner, plane, start
        self.model = owner.model
        self.first = self.model.parameters(start.matrix, plane)
        self.parameters = self.first
        self.loss = np.inf
        self.measured: Measure | None = None  # at the parameters, of the last level
        self.started = False

    def whole(self, parameters: np.ndarray) -> np.ndarray:
        """The map, with the mirror."""
        matrix = self.model.matrix(parameters, self.plane)
        return matrix @ MIRROR if self.start.mirrored else matrix

    def run(self, fixed: Level, moving: Level, level: int, number: int) -> int:
        """Descend a level; returns the steps."""
        if self.owner.optimizer == "adam":
            return self._adam(fixed, moving, level, number)
        return self._gauss_newton(fixed, moving, level)

    def _at(
        self, parameters: np.ndarray, fixed: Level, moving: Level
    ) -> tuple[float, np.ndarray, np.ndarray, Measure]:
        """Loss with regularisation, its gradient and curvature by the parameters, and the bare."""
        measured = self.owner.objective(fixed, moving, self.whole(parameters))
        if not np.isfinite(measured.loss):
            return np.inf, np.zeros(len(parameters)), np.eye(len(parameters)), measured
        derivative = self.model.derivative(parameters, self.plane)
        if self.start.mirrored:
            derivative = derivative @ MIRROR
        chain = self.owner.objective.chain(derivative, fixed)
        weight = self.owner.regularisation
        penalty, slope, bend = self.model.penalty(parameters)
        return (
            measured.loss + weight * penalty,
            chain.T @ measured.gradient + weight * slope,
            chain.T @ measured.curvature @ chain + weight * bend,
            measured,
        )

    def _gauss_newton(self, fixed: Level, moving: Level, level: int) -> int:
        damping, least, largest = _DAMPING
        still = _STILL[level == len(self.owner.schedule.reductions) - 1]
        at, reach = self.parameters, 1.0
        loss, gradient, curvature, measured = self._at(at, fixed, moving)
        steps = 0
        while steps < self.owner.schedule.epochs[level] and np.isfinite(loss):
            diagonal = np.diag(curvature).clip(1e-12)
            step = -np.linalg.solve(curvature + damping * np.diag(diagonal), gradient) * reach
            moved = self._distance(at, at + step) / fixed.factor
            trial = self._at(at + step, fixed, moving)
            steps += 1
            if trial[0] < loss:
                # Noise adds to the curvature, not to the slope: the step is too short by the ratio
                # of the slope's change that was expected and the one that was observed.
                expected, observed = step @ curvature @ step, step @ (trial[1] - gradient)
                reach = float(np.clip(expected / max(observed, 1e-300), 1.0, _LONGEST))
                gained = loss - trial[0]
                at, (loss, gradient, curvature, measured) = at + step, trial
                damping = max(damping / 10, least)
                if gained < _EQUAL:
                    break
            elif reach > 1:
                reach = 1.0
                continue
            else:
                damping *= 10
            if moved < still or damping > largest:
                break
        self.parameters, self.loss, self.measured = at, loss, measured
        return steps

    def _distance(self, first: np.ndarray, second: np.ndarray) -> float:
        """Pixels of the full section between two maps."""
        one, other = (self.model.matrix(values, self.plane) for values in (first, second))
        return corner_distance(one, other, self.plane)

    def _adam(self, fixed: Level, moving: Level, level: int, number: int) -> int:
        owner, schedule = self.owner, self.owner.schedule
        if not self.started:
            random = np.random.default_rng((owner.seed, number))
            self.parameters = self.parameters + random.normal(0, owner.init_std, self.model.count)
            self.started = True
        values = torch.nn.Parameter(torch.from_numpy(self.parameters.copy()))
        adam = torch.optim.Adam([values], lr=schedule.rates[level])
        losses: list[float] = []
        best = (np.inf, self.parameters, self._at(self.parameters, fixed, moving)[3])
        for _ in range(schedule.epochs[level]):
            at = values.detach().numpy().copy()
            loss, gradient, _, measured = self._at(at, fixed, moving)
            if loss < best[0]:
                best = (loss, at, measured)
            if not np.isfinite(loss):
                break
            losses.append(loss)
            recent = losses[-schedule.window :]
            stalled = len(recent) == schedule.window and max(recent) - min(recent)
            if (
                schedule.early_stopping
                and len(recent) == schedule.window
                and (stalled < schedule.tolerance)
            ):
                break
            values.grad = torch.from_numpy(gradient)
            adam.step()
        self.loss, self.parameters, self.measured = best
        return len(losses)
