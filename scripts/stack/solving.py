"""One transform a section, from maps measured between pairs of sections.

The sum over the pairs (a, b) of w |C_b y - M_ab C_a y|^2, over five points y, is least; C takes a
point of the registered frame to the section. Two weights multiply. Agreement falls to 0 for pairs
that contradict the others (Geman and McClure, its scale lowered step by step). Likeness falls for
pairs that correlate less than pairs of that distance do. Both are needed: least squares smear a
damaged section over its neighbours, and a section of which half is gone agrees with itself. A third
weight is common to all pairs of a distance: their precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from scripts.stack.planar import PlanarModel, Plane
from scripts.stack.search import MIRROR

__all__ = ["MeasuredPair", "Solution", "likeness", "precision", "solve"]

_LEAST_PRECISION = 0.01
_LEAST_WEIGHT = 1e-4  # a pair never vanishes: it may be the only bridge
_DAMAGED = 0.1  # mean weight of its pairs under which a section is damaged
_AGREED = 3.0  # pixels: where two pairs of a damaged section agree, it keeps their position
_SCALES = (16.0, 8.0, 4.0, 2.0, 1.0)  # of agreement, in multiples of the last one
_LEAST_SCALE = 0.25  # pixels
_ROUNDS = 6  # of reweighting with each scale
_NEWTON = 10
_DONE = 1e-10


@dataclass(frozen=True)
class MeasuredPair:
    """What was measured between two sections.

    Attributes:
        first: index of the section that the map starts from.
        second: index of the section that it leads to.
        matrix: ``(3, 3)``, physical.
        mirrored: whether it mirrors.
        correlation: of the two after alignment.
        distance: of the two in the stack; sections that were never measured are counted.
    """

    first: int
    second: int
    matrix: np.ndarray
    mirrored: bool
    correlation: float
    distance: int = 1


@dataclass(frozen=True)
class Solution:
    """The transforms of a stack.

    Attributes:
        matrices: ``(sections, 3, 3)``, physical, registered frame to section; the mirror included.
        weights: of each pair.
        residuals: of each pair, pixels, r.m.s. over the five points.
        damaged: indices of sections that contradict their pairs, or that are unlike all others.
        lost: those of them whose pairs don't agree on their position.
    """

    matrices: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    damaged: tuple[int, ...]
    lost: tuple[int, ...]


def likeness(pairs: Sequence[MeasuredPair]) -> np.ndarray:
    """Weights in (0, 1]: correlation after alignment against pairs of the same distance.

    A pair is compared with the median of the correlations (Fisher's z) of its distance; below
    three robust standard deviations its weight falls.
    """
    weights = np.ones(len(pairs))
    distance = np.array([pair.distance for pair in pairs])
    z = np.arctanh(
        np.clip([np.nan_to_num(pair.correlation) for pair in pairs], -0.999999, 0.999999)
    )
    for apart in np.unique(distance):
        mine = distance == apart
        if mine.sum() < 4:
            # Too few for a median of this distance: those of all distances are used.
            usual, spread = np.median(z), _spread(z)
        else:
            usual, spread = np.median(z[mine]), _spread(z[mine])
        low = np.maximum(0, (usual - z[mine]) / spread - 2) / 2
        weights[mine] = 1 / (1 + low**2) ** 2
    return weights.clip(_LEAST_WEIGHT)


def precision(pairs: Sequence[MeasuredPair]) -> np.ndarray:
    """Weights in (0, 1]: how exact pairs of a distance are, against those of the least distance.

    The variance of a measured shift is as (1 - r^2) / r^2. With r the median correlation of a
    distance, sections two apart count little where even neighbours are hardly alike.
    """
    distance = np.array([pair.distance for pair in pairs])
    r = np.clip([np.nan_to_num(pair.correlation) for pair in pairs], 0.01, 0.999)
    exact = {apart: np.median(r[distance == apart]) for apart in np.unique(distance)}
    exact = {apart: value**2 / (1 - value**2) for apart, value in exact.items()}
    best = exact[distance.min()]
    return np.array([exact[apart] / best for apart in distance]).clip(_LEAST_PRECISION, 1.0)


def _spread(values: np.ndarray) -> float:
    """Robust standard deviation; correlations that hardly differ give no reason for doubt."""
    return float(max(1.4826 * np.median(np.abs(values - np.median(values))), 0.05))


def solve(
    count: int,
    pairs: Sequence[MeasuredPair],
    reference: int,
    model: PlanarModel,
    plane: Plane,
) -> Solution:
    """Solve a stack.

    Args:
        count: of the sections; each is connected to the reference by pairs.
        pairs: the measured ones.
        reference: section whose frame is kept.
        model: family of the transforms.
        plane: of a section.
    """
    like = likeness(pairs)
    matrices, mirrored = _along_tree(count, pairs, like, reference)
    problem = _Problem(count, pairs, reference, model, plane, mirrored)
    parameters = problem.parameters_of(matrices)
    agreement = np.ones(len(pairs))
    if len(pairs) >= count:  # a tree has no contradictions
        parameters, agreement = problem.reweighted(parameters, like, precision(pairs))
    residuals = problem.residuals(parameters)
    weights = like * agreement
    matrices = problem.matrices(parameters)
    if model.has_scale:
        matrices = _mean_scale_kept(matrices, model, plane)
    damaged = _damaged(count, pairs, weights, reference)
    lost = tuple(z for z in damaged if _apart(z, pairs, residuals) > _AGREED)
    return Solution(matrices, weights, residuals, damaged, lost)


def _along_tree(
    count: int, pairs: Sequence[MeasuredPair], like: np.ndarray, reference: int
) -> tuple[np.ndarray, np.ndarray]:
    """Composition along the tree of the best pairs: matrices, and which are mirrored."""
    matrices, reached = np.tile(np.eye(3), (count, 1, 1)), {reference}
    mirrored = np.zeros(count, dtype=bool)
    order = sorted(
        range(len(pairs)),
        key=lambda k: (-round(float(like[k]), 1), pairs[k].second - pairs[k].first, k),
    )
    while len(reached) < count:
        for k in order:
            pair = pairs[k]
            if (pair.first in reached) == (pair.second in reached):
                continue
            if pair.first in reached:
                source, new, matrix = pair.first, pair.second, pair.matrix
            else:
                source, new, matrix = pair.second, pair.first, np.linalg.inv(pair.matrix)
            matrices[new] = matrix @ matrices[source]
            mirrored[new] = mirrored[source] != pair.mirrored
            reached.add(new)
            break
        else:
            raise ValueError(f"sections {sorted(set(range(count)) - reached)} have no pairs")
    return matrices, mirrored


def _damaged(
    count: int, pairs: Sequence[MeasuredPair], weights: np.ndarray, reference: int
) -> tuple[int, ...]:
    """Sections whose pairs all have low weights; a pair counts against one section."""
    damaged: list[int] = []
    open_pairs = set(range(len(pairs)))
    while True:
        means = {}
        for section in range(count):
            mine = [k for k in open_pairs if section in (pairs[k].first, pairs[k].second)]
            if mine and section != reference:
                best = sorted((float(weights[k]) for k in mine), reverse=True)
                # One pair of several agrees with itself wherever it puts the section.
                means[section] = (best[1] if len(best) > 2 else best[0], -len(mine))
        if not means:
            break
        worst = min(means, key=lambda section: means[section])
        if means[worst][0] >= _DAMAGED:
            break
        damaged.append(worst)
        open_pairs -= {k for k in open_pairs if worst in (pairs[k].first, pairs[k].second)}
    return tuple(sorted(damaged))


def _apart(section: int, pairs: Sequence[MeasuredPair], residuals: np.ndarray) -> float:
    """Residual of the section's second best pair, pixels: one pair agrees with itself."""
    mine = sorted(
        float(residuals[k]) for k, pair in enumerate(pairs) if section in (pair.first, pair.second)
    )
    return mine[1] if len(mine) > 1 else np.inf


def _mean_scale_kept(matrices: np.ndarray, model: PlanarModel, plane: Plane) -> np.ndarray:
    """One scaling of the frame for all, so that the mean scale of the sections is 1."""
    scales = []
    for matrix in matrices:
        straight = matrix @ MIRROR if np.linalg.det(matrix[:2, :2]) < 0 else matrix
        six = model.spread @ model.parameters(straight, plane)
        scales.append(np.log1p(six[3:5]))
    mean = np.exp(-np.mean(scales, axis=0))
    if np.abs(mean - 1).max() < 1e-12:
        return matrices
    return matrices @ np.diag([*mean, 1.0])


class _Problem:
    """The sum of squares, by the parameters of the sections that are not the reference."""

    def __init__(
        self,
        count: int,
        pairs: Sequence[MeasuredPair],
        reference: int,
        model: PlanarModel,
        plane: Plane,
        mirrored: np.ndarray,
    ) -> None:
        self.count, self.reference, self.model, self.plane = count, reference, model, plane
        self.first = np.array([pair.first for pair in pairs])
        self.second = np.array([pair.second for pair in pairs])
        self.maps = np.stack([pair.matrix for pair in pairs])
        self.points = np.where(
            mirrored[:, None, None], MIRROR @ plane.five_points, plane.five_points
        )
        self.mirrored = mirrored
        self.free = [section for section in range(count) if section != reference]
        self._pattern = self._pattern_of()

    def parameters_of(self, matrices: np.ndarray) -> np.ndarray:
        """``(sections, P)`` of maps with the mirror."""
        return np.stack(
            [
                self.model.parameters(matrix @ MIRROR if turned else matrix, self.plane)
                for matrix, turned in zip(matrices, self.mirrored, strict=True)
            ]
        )

    def matrices(self, parameters: np.ndarray) -> np.ndarray:
        """``(sections, 3, 3)`` with the mirror."""
        result = np.stack([self.model.matrix(one, self.plane) for one in parameters])
        return np.where(self.mirrored[:, None, None], result @ MIRROR, result)

    def differences(self, parameters: np.ndarray) -> np.ndarray:
        """``(pairs, 2, 5)`` in pixels: ``C_b y - M_ab C_a y``."""
        placed = np.stack([self.model.matrix(one, self.plane) for one in parameters]) @ self.points
        apart = placed[self.second] - self.maps @ placed[self.first]
        return apart[:, :2] / self.plane.pixel

    def residuals(self, parameters: np.ndarray) -> np.ndarray:
        """R.m.s. over the points, pixels."""
        return np.sqrt((self.differences(parameters) ** 2).sum(1).mean(1))

    def reweighted(
        self, parameters: np.ndarray, like: np.ndarray, exact: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The parameters of least weighted squares, and the weights of agreement."""
        parameters = self._least(parameters, like * exact)
        residuals = self.residuals(parameters)
        sound = residuals[like > 0.5] if (like > 0.5).any() else residuals
        last = max(3 * float(np.median(sound)), _LEAST_SCALE)
        agreement = np.ones(len(like))
        for scale in _SCALES:
            for _ in range(_ROUNDS):
                residuals = self.residuals(parameters)
                agreement = 1 / (1 + (residuals / (last * scale)) ** 2) ** 2
                parameters = self._least(
                    parameters, (like * exact * agreement).clip(_LEAST_WEIGHT**2), steps=2
                )
            # Sharper than the first guess, once what contradicts no longer counts.
            kept = self.residuals(parameters)[like * agreement > 0.25]
            if len(kept):
                last = max(min(last, 3 * float(np.median(kept))), _LEAST_SCALE)
        parameters = self._least(parameters, (like * exact * agreement).clip(_LEAST_WEIGHT**2))
        return parameters, agreement

    def _least(
        self, parameters: np.ndarray, weights: np.ndarray, steps: int = _NEWTON
    ) -> np.ndarray:
        """Gauss-Newton with given weights; the matrix is banded, so its cost grows linearly."""
        rows, columns = self._pattern
        size, width = self.model.count, len(self.free) * self.model.count
        heavy = np.repeat(np.sqrt(weights), 10)
        for _ in range(steps):
            slopes = np.stack([self.model.derivative(one, self.plane) for one in parameters])
            slopes = np.einsum("spij,sjk->sikp", slopes, self.points) / self.plane.pixel
            back = -np.einsum("nij,njkp->nikp", self.maps[:, :2, :2], slopes[self.first])
            blocks = np.stack([back, slopes[self.second]], axis=1).reshape(-1, 2, 10, size)
            values = blocks * heavy.reshape(-1, 1, 10, 1)
            wanted = columns >= 0
            jacobian = sparse.csc_matrix(
                (values.ravel()[wanted], (rows[wanted], columns[wanted])), (len(heavy), width)
            )
            errors = self.differences(parameters).reshape(-1) * heavy
            normal = jacobian.T @ jacobian + 1e-12 * sparse.identity(width, format="csc")
            step = splu(normal.tocsc()).solve(-jacobian.T @ errors)
            parameters = parameters.copy()
            parameters[self.free] += step.reshape(-1, size)
            if np.abs(step).max() < _DONE:
                break
        return parameters

    def _pattern_of(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the Jacobian's entries; column -1 belongs to the reference."""
        size = self.model.count
        place = np.full(self.count, -1)
        place[self.free] = np.arange(len(self.free)) * size
        starts = np.stack([place[self.first], place[self.second]], axis=1)
        columns = starts[:, :, None, None] + np.arange(size)
        columns = np.where(starts[:, :, None, None] < 0, -1, columns)
        rows = (np.arange(len(self.first)) * 10)[:, None, None, None] + np.arange(10)[:, None]
        shape = (len(self.first), 2, 10, size)
        return np.broadcast_to(rows, shape).ravel(), np.broadcast_to(columns, shape).ravel()
