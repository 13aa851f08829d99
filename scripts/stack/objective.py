"""What a pair of sections is compared by: a loss over the overlap, its gradient, its curvature.

All are functions of the affine map alone. The moving section is linear in the map to first order:
along the six directions of the map's upper rows it changes by b = [gx x, gx y, gx, gy x, gy y, gy]
(gx, gy: the section's derivatives, x, y: the point over the half width). With the 9 x 9 moments of
[b, fixed, moved, 1] over the overlap, correlation and squared differences have closed forms for
any family of maps; the moments are summed in bands of rows, so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from scripts.stack.pyramid import Level

__all__ = ["LEAST_OVERLAP", "LOSSES", "Measure", "Objective"]

LEAST_OVERLAP = 0.25
"""Share of the fixed section that must be covered by the moving one."""
LOSSES = ("ncc", "mse", "mae", "ssim")

_BAND = 1 << 14  # pixels of a band of rows: it stays in the cache, and its float32 sums are exact
_INSIDE = 1 + 1e-6  # of -1..1 across a section: the border counts in spite of rounding
_FLAT = 1e-12  # variance of images in 0..1 below which correlation is undefined
_SMALLEST_RESIDUAL = 1e-3  # of images in 0..1: an absolute difference has no curvature at 0
_SSIM_CONSTANTS = (0.01**2, 0.03**2)
_F, _M, _ONE = 6, 7, 8  # places of fixed, moved and 1 among the moments


@dataclass(frozen=True)
class Measure:
    """A loss at one map.

    Attributes:
        loss: infinite where the overlap is too small.
        gradient: ``(6,)`` by the upper rows of the map, as `Objective` scales them.
        curvature: ``(6, 6)``, Gauss-Newton's.
        correlation: Pearson's over the overlap; nan where it isn't defined.
        overlap: share of the fixed section.
    """

    loss: float
    gradient: np.ndarray
    curvature: np.ndarray
    correlation: float
    overlap: float


class Objective:
    """A loss of two levels.

    Args:
        loss: one of `LOSSES`.
        window: of ``ssim``, pixels.

    Raises:
        ValueError: the loss is unknown.
    """

    def __init__(self, loss: str = "ncc", window: int = 11) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.loss, self.window = loss, window

    def __call__(
        self, fixed: Level, moving: Level, matrix: np.ndarray, slopes: bool = True
    ) -> Measure:
        """Measure a map.

        Args:
            fixed: level of the section that the map starts from.
            moving: level of the same reduction of the section that it leads to.
            matrix: ``(3, 3)``, physical.
            slopes: False computes the loss alone, in a third of the time; gradient and curvature
                are then 0.
        """
        pixels = float(np.prod(fixed.shape))
        if self.loss == "ssim":
            moments, ssim = self._with_windows(fixed, moving, matrix)
        else:
            moments, ssim = _moments(fixed, moving, matrix, self.loss == "mae", slopes), None
        plain = moments[0]
        count = plain[_ONE, _ONE]
        overlap = count / pixels
        correlation = _correlation(plain)
        if overlap < LEAST_OVERLAP or (ssim is not None and ssim.count == 0):
            return Measure(np.inf, np.zeros(6), np.eye(6), correlation, overlap)
        if self.loss == "ncc":
            loss, gradient, curvature = _of_correlation(plain)
        elif self.loss == "mse":
            loss, gradient, curvature = _of_squares(plain)
        elif self.loss == "mae":
            loss, gradient, curvature = _of_absolutes(moments[1], count)
        else:
            assert ssim is not None
            loss, gradient, curvature = ssim.loss, ssim.gradient, ssim.curvature
        return Measure(loss, gradient, curvature, correlation, overlap)

    def chain(self, derivative: np.ndarray, level: Level) -> np.ndarray:
        """``(6, P)``: from parameters to the six directions.

        Args:
            derivative: ``(P, 2, 3)`` of the map by its parameters, physical.
            level: either level of the pair.
        """
        scaled = derivative * np.array([*_half_width(level), 1.0]) / level.step[:, None]
        return scaled.reshape(len(derivative), 6).T

    def _with_windows(
        self, fixed: Level, moving: Level, matrix: np.ndarray
    ) -> tuple[list[np.ndarray], _Ssim]:
        columns, weight = next(_bands(fixed, moving, matrix, fixed.shape[0]))
        gram = _gram(columns, weight)
        return [gram], _structural(columns, weight, fixed.shape, self.window)


# ---------------------------------------------------------------------------------------------
# Moments
# ---------------------------------------------------------------------------------------------


def _moments(
    fixed: Level, moving: Level, matrix: np.ndarray, absolute: bool, slopes: bool
) -> list[np.ndarray]:
    """``(9, 9)`` moments over the overlap; with ``absolute`` also those over |fixed - moved|."""
    rows = max(1, _BAND // fixed.shape[1])
    sums = [np.zeros((9, 9)), np.zeros((9, 9))]
    part = slice(0 if slopes else _F, None)
    for columns, weight in _bands(fixed, moving, matrix, rows, slopes):
        sums[0][part, part] += _gram(columns, weight)
        if absolute:
            apart = (columns[-3] - columns[-2]).abs().clamp_min(_SMALLEST_RESIDUAL)
            sums[1][part, part] += _gram(columns, weight / apart)
    return sums


def _bands(
    fixed: Level, moving: Level, matrix: np.ndarray, rows: int, slopes: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Columns and weights ``(pixels,)`` of bands of rows of the fixed level.

    Columns are ``(9, pixels)``, or without slopes the last 3 of them.
    """
    height, width = fixed.shape
    size = np.array(moving.shape[::-1]) - 1.0
    device = fixed.values.device
    # From a column and a row of the fixed level to those of the moving one.
    linear = matrix[:2, :2] * fixed.step / moving.step[:, None]
    shift = (matrix[:2, :2] @ fixed.origin + matrix[:2, 2] - moving.origin) / moving.step
    # And to -1..1 across it.
    scaled = torch.as_tensor(linear * (2 / size)[:, None], dtype=torch.float32, device=device)
    start = torch.as_tensor(shift * (2 / size) - 1, dtype=torch.float32, device=device)
    across = torch.arange(width, dtype=torch.float32, device=device)
    points_x = (across * float(fixed.step[0]) + float(fixed.origin[0])) / _half_width(fixed)[0]
    halo = 1 if slopes else 0
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top, bottom = max(first - halo, 0), min(last + halo, height)
        down = torch.arange(top, bottom, dtype=torch.float32, device=device)[:, None]
        grid = across[:, None] * scaled[:, 0] + (down * scaled[:, 1] + start)[:, None]
        sampled = F.grid_sample(
            moving.values, grid[None], mode="bilinear", padding_mode="border", align_corners=True
        )[0, 0]
        grid, moved = grid[first - top : last - top], sampled[first - top : last - top]
        weight = (grid.abs().amax(-1) <= _INSIDE).to(torch.float32)
        if fixed.known is not None:
            weight = weight * fixed.known[0, 0, first:last]
        if moving.known is not None:
            share = F.grid_sample(moving.known, grid[None], align_corners=True)[0, 0]
            weight = weight * (share > 0.999)
        columns = torch.empty((9 if slopes else 3, last - first, width), device=device)
        if slopes:
            down = down[first - top : last - top]
            points_y = (down * fixed.step[1] + fixed.origin[1]) / _half_width(fixed)[1]
            directions = columns[:6].view(2, 3, last - first, width)
            _gradient(sampled, first - top, last - top, linear, directions[:, 2])
            torch.mul(directions[:, 2], points_x, out=directions[:, 0])
            torch.mul(directions[:, 2], points_y, out=directions[:, 1])
        # About the middle of 0..1, so that float32 sums lose little.
        torch.sub(fixed.values[0, 0, first:last], 0.5, out=columns[-3])
        torch.sub(moved, 0.5, out=columns[-2])
        columns[-1] = 1.0
        yield columns.reshape(len(columns), -1), weight.reshape(-1)


def _gradient(
    sampled: torch.Tensor, first: int, last: int, linear: np.ndarray, out: torch.Tensor
) -> None:
    """Derivatives of the moving section along its columns and rows, 0 at the border.

    Differences of the sampled values are along the fixed section's axes; the inverse of the linear
    part turns them. So no level has to keep its derivatives.

    Args:
        sampled: ``(rows, columns)`` of the moving section, a row more at each side if there is one.
        first: row of the result's first one.
        last: row after its last one.
        linear: ``(2, 2)`` from steps of the fixed section's pixels to the moving one's.
        out: ``(2, rows, columns)``, is written.
    """
    inner = sampled[first:last]
    by_column, by_row = torch.zeros_like(inner), torch.zeros_like(inner)
    torch.sub(inner[:, 2:], inner[:, :-2], out=by_column[:, 1:-1])
    top, bottom = max(first, 1), min(last, len(sampled) - 1)
    if bottom > top:
        torch.sub(
            sampled[top + 1 : bottom + 1], sampled[top - 1 : bottom - 1],
            out=by_row[top - first : bottom - first],
        )  # fmt: skip
    (a, b), (c, d) = np.linalg.inv(linear.T) / 2
    torch.add(by_column * float(a), by_row, alpha=float(b), out=out[0])
    torch.add(by_column * float(c), by_row, alpha=float(d), out=out[1])


def _gram(columns: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    return ((columns * weight) @ columns.T).cpu().numpy().astype(np.float64)


def _half_width(level: Level) -> np.ndarray:
    return level.step * np.array([level.shape[1], level.shape[0]]) / 2


# ---------------------------------------------------------------------------------------------
# Losses by the moments
# ---------------------------------------------------------------------------------------------


def _covariances(moments: np.ndarray) -> np.ndarray:
    """``(8, 8)``: of the six directions, fixed and moved."""
    count = max(moments[_ONE, _ONE], 1.0)
    means = moments[:_ONE, _ONE] / count
    return moments[:_ONE, :_ONE] / count - np.outer(means, means)


def _correlation(moments: np.ndarray) -> float:
    covariances = _covariances(moments)
    variances = covariances[_F, _F], covariances[_M, _M]
    if min(variances) <= _FLAT:
        return float("nan")
    return float(np.clip(covariances[_F, _M] / np.sqrt(variances[0] * variances[1]), -1, 1))


def _of_correlation(moments: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """1 - r, half the squared distance of the two standardised images."""
    covariances = _covariances(moments)
    fixed, moved = covariances[_F, _F], covariances[_M, _M]
    if min(fixed, moved) <= _FLAT:
        return 1.0, np.zeros(6), np.eye(6)
    r = covariances[_F, _M] / np.sqrt(fixed * moved)
    along = covariances[:6, _M]
    gradient = -(covariances[:6, _F] / np.sqrt(fixed * moved) - r * along / moved)
    curvature = covariances[:6, :6] / moved - np.outer(along, along) / moved**2
    return float(1 - r), gradient, curvature


def _of_squares(moments: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    count = moments[_ONE, _ONE]
    loss = moments[_F, _F] - 2 * moments[_F, _M] + moments[_M, _M]
    gradient = 2 * (moments[:6, _M] - moments[:6, _F])
    return float(max(loss, 0.0) / count), gradient / count, 2 * moments[:6, :6] / count


def _of_absolutes(moments: np.ndarray, count: float) -> tuple[float, np.ndarray, np.ndarray]:
    """By moments over the absolute difference: squares over it are absolutes."""
    squares, gradient, curvature = _of_squares(moments)
    weight = moments[_ONE, _ONE] / count
    return squares * weight, gradient * weight / 2, curvature * weight / 2


# ---------------------------------------------------------------------------------------------
# Structural similarity
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ssim:
    loss: float
    gradient: np.ndarray
    curvature: np.ndarray
    count: int


def _structural(
    columns: torch.Tensor, weight: torch.Tensor, shape: tuple[int, int], window: int
) -> _Ssim:
    """1 - mean SSIM over the windows within the overlap.

    The gradient is exact. The curvature is that of the windows' contrast term: around equal
    images, 1 - SSIM is the variance of the difference over the sum of variances.
    """
    window = min(window, min(shape) - (1 - min(shape) % 2))
    known = weight.reshape(1, 1, *shape)
    whole = (_box(known, window) > 1 - 1e-4).to(torch.float32)
    count = int(whole.sum())
    if count == 0:
        return _Ssim(np.inf, np.zeros(6), np.eye(6), 0)
    fixed = (columns[_F] + 0.5).reshape(1, 1, *shape)
    moved = (columns[_M] + 0.5).reshape(1, 1, *shape).clone().requires_grad_(True)
    c1, c2 = _SSIM_CONSTANTS
    with torch.enable_grad():
        mean_f, mean_m = _box(fixed, window), _box(moved, window)
        spread = _box(fixed * fixed, window) + _box(moved * moved, window)
        spread = spread - mean_f * mean_f - mean_m * mean_m
        common = _box(fixed * moved, window) - mean_f * mean_m
        value = (2 * mean_f * mean_m + c1) * (2 * common + c2)
        value = value / ((mean_f * mean_f + mean_m * mean_m + c1) * (spread + c2))
        loss = 1 - (value * whole).sum() / count
        (slope,) = torch.autograd.grad(loss, moved)
    stiffness = _spread_back(whole / (spread.detach() + c2), window, shape) * (2 / count)
    directions = columns[:6]
    gradient = directions @ slope.reshape(-1)
    curvature = (directions * stiffness.reshape(-1)) @ directions.T
    return _Ssim(
        float(loss.detach()),
        gradient.cpu().numpy().astype(np.float64),
        curvature.cpu().numpy().astype(np.float64),
        count,
    )


def _box(image: torch.Tensor, window: int) -> torch.Tensor:
    """Means of windows within the image."""
    across = F.avg_pool2d(image, (1, window), stride=1)
    return F.avg_pool2d(across, (window, 1), stride=1)


def _spread_back(image: torch.Tensor, window: int, shape: tuple[int, int]) -> torch.Tensor:
    """`_box` transposed: each window's value over its pixels."""
    padded = F.pad(image, [window - 1] * 4)
    return _box(padded, window)[..., : shape[0], : shape[1]]
