"""Where the descent of a pair starts: rotations, each with the shifts that match best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from scripts.stack.objective import LEAST_OVERLAP, Objective
from scripts.stack.planar import Plane
from scripts.stack.pyramid import Level

__all__ = ["MIRROR", "Start", "search_starts"]

MIRROR = np.diag([-1.0, 1.0, 1.0])
"""A section turned over: x changes its sign."""

_KEPT = 3  # starts that are descended from
_CLOSE = 0.1  # of correlation: a start that is worse by more is not descended from
_PEAKS = 2  # shifts kept of each rotation and method
_FLAT = 1e-8


@dataclass(frozen=True)
class Start:
    """Where a descent may begin.

    Attributes:
        matrix: ``(3, 3)`` physical, without the mirror.
        mirrored: whether the fixed section is mirrored first: the map is ``matrix @ MIRROR``.
        correlation: at the level of the search.
    """

    matrix: np.ndarray
    mirrored: bool
    correlation: float


def search_starts(
    fixed: Level, moving: Level, plane: Plane, angle: float, flips: bool
) -> list[Start]:
    """The best few starts, the identity among them if it is as good.

    Each rotation turns the moving section; its shifts are the peaks of phase correlation and of
    the correlation over the overlap, both for all shifts at once by Fourier transforms. What
    counts is the correlation over the overlap, less what chance gives where the overlap is small.

    Args:
        fixed: coarsest level of one section.
        moving: of the other.
        plane: of the full sections.
        angle: largest rotation, degrees.
        flips: whether to try mirrored ones.
    """
    measure = Objective("ncc")
    found: list[tuple[float, Start]] = []

    def consider(matrix: np.ndarray, mirrored: bool) -> None:
        whole = matrix @ MIRROR if mirrored else matrix
        at = measure(fixed, moving, whole, slopes=False)
        if at.overlap >= LEAST_OVERLAP and np.isfinite(at.correlation):
            score = at.correlation * np.sqrt(min(1.0, at.overlap))
            found.append((score, Start(matrix, mirrored, at.correlation)))

    consider(np.eye(3), False)
    for turn in _turns(angle, max(fixed.shape)):
        for mirrored in (False, True) if flips else (False,):
            for matrix in _shifted(fixed, moving, turn, mirrored):
                consider(matrix, mirrored)
    found.sort(key=lambda one: -one[0])
    close = [start for score, start in found if score >= found[0][0] - _CLOSE]
    return _distinct(close, fixed)


def _turns(angle: float, side: int) -> np.ndarray:
    """Rotations in radians, about two pixels apart at the border, the smallest first."""
    step = min(np.degrees(4.0 / side), 3.0)
    count = int(np.ceil(angle / step))
    if count == 0:
        return np.zeros(1)
    turns = np.linspace(-angle, angle, 2 * count + 1)
    if angle >= 180:
        turns = turns[1:]  # -180 and 180 degrees are one
    return np.radians(turns[np.argsort(np.abs(turns), kind="stable")])


def _distinct(starts: list[Start], level: Level) -> list[Start]:
    """The first few that lie more than two pixels of the level apart."""
    rows, columns = level.shape
    x, y = level.step * np.array([columns, rows]) / 2
    corners = np.array([[-x, x, -x, x], [-y, -y, y, y], [1.0] * 4])
    kept: list[Start] = []
    for start in starts:
        apart = [
            np.abs(((start.matrix - other.matrix) @ corners)[:2] / level.step[:, None]).max()
            for other in kept
            if other.mirrored == start.mirrored
        ]
        if min(apart, default=np.inf) > 2:
            kept.append(start)
        if len(kept) == _KEPT:
            break
    return kept


def _shifted(fixed: Level, moving: Level, turn: float, mirrored: bool) -> Iterator[np.ndarray]:
    """Maps of one rotation with the shifts that match best."""
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    image, seen = _turned(moving, rotation @ MIRROR if mirrored else rotation)
    target = fixed.values[0, 0]
    known = torch.ones_like(target) if fixed.known is None else fixed.known[0, 0]
    for rows, columns in _peaks(target, known, image, seen):
        moved = np.eye(3)
        # The turned section's pixel x + shift matches x: turn after shifting the fixed point.
        moved[:2, 2] = np.array([columns, rows]) * fixed.step
        if mirrored:
            moved[0, 2] = -moved[0, 2]
        yield rotation @ moved


def _turned(level: Level, matrix: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A level under a map without translation, and where it is known."""
    rows, columns = level.shape
    device = level.values.device
    linear = matrix[:2, :2] * level.step / level.step[:, None]
    shift = (matrix[:2, :2] @ level.origin - level.origin) / level.step
    across = torch.arange(columns, dtype=torch.float32, device=device)
    down = torch.arange(rows, dtype=torch.float32, device=device)[:, None]
    x = across * float(linear[0, 0]) + (down * float(linear[0, 1]) + float(shift[0]))
    y = across * float(linear[1, 0]) + (down * float(linear[1, 1]) + float(shift[1]))
    grid = torch.stack([x * (2 / (columns - 1)) - 1, y * (2 / (rows - 1)) - 1], -1)[None]
    image = F.grid_sample(level.values[:, :1], grid, padding_mode="border", align_corners=True)
    seen = (x >= 0) & (x <= columns - 1) & (y >= 0) & (y <= rows - 1)
    if level.known is not None:
        seen = seen & (F.grid_sample(level.known, grid, align_corners=True)[0, 0] > 0.999)
    return image[0, 0], seen.to(torch.float32)


def _peaks(
    fixed: torch.Tensor, known: torch.Tensor, moving: torch.Tensor, seen: torch.Tensor
) -> list[tuple[int, int]]:
    """Shifts ``(rows, columns)`` s such that ``moving(x + s)`` matches ``fixed(x)``."""
    rows, columns = fixed.shape
    size = (2 * rows, 2 * columns)
    fixed = (fixed - fixed[known > 0].mean()) * known
    moving = (moving - moving[seen > 0].mean()) * seen

    def transform(image: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(image, s=size)

    def together(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Sums over the overlap of ``one(x) other(x + s)`` for every s."""
        return torch.fft.irfft2(one.conj() * other, s=size)

    f, ff, kf = transform(fixed), transform(fixed * fixed), transform(known)
    m, mm, km = transform(moving), transform(moving * moving), transform(seen)
    count = together(kf, km).clamp_min(1.0)
    sum_f, sum_m = together(f, km), together(kf, m)
    covariance = together(f, m) - sum_f * sum_m / count
    variances = (together(ff, km) - sum_f**2 / count) * (together(kf, mm) - sum_m**2 / count)
    correlation = covariance / variances.clamp_min(_FLAT).sqrt()
    enough = count >= LEAST_OVERLAP * rows * columns
    correlation = torch.where(enough, correlation * (count / (rows * columns)).sqrt(), -1.0)
    cross = f.conj() * m
    phase = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-12), s=size)
    phase = torch.where(enough, phase, -torch.inf)
    shifts: list[tuple[int, int]] = []
    for surface in (correlation, phase):
        for place in torch.topk(surface.reshape(-1), _PEAKS).indices.tolist():
            down, across = divmod(place, size[1])
            shift = (
                down - size[0] if down >= rows else down,
                across - size[1] if across >= columns else across,
            )
            if shift not in shifts:
                shifts.append(shift)
    return shifts
