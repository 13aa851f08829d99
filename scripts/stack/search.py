"""Where the descent of a pair starts: rotations, each with the shifts that match best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from scripts.stack.objective import LEAST_OVERLAP, Objective
from scripts.stack.pyramid import Level

__all__ = ["MIRROR", "Start", "search_starts"]

MIRROR = np.diag([-1.0, 1.0, 1.0])
"""A section turned over: x changes its sign."""

_KEPT = 3  # starts that are descended from
_CLOSE = 0.1  # of correlation: a start that is worse by more is not descended from
_PEAKS = 2  # shifts kept of each rotation and method
_FLAT = 1e-4  # of the largest sum of squares: an overlap that varies less is flat
_TINY = 1e-12
_AT_ONCE = 1 << 15  # pixels of the turned sections whose transforms are kept at a time
_ROUNDING = 1e-6  # of -1..1 across a section


@dataclass(frozen=True)
class Start:
    """Where a descent may begin.

    Attributes:
        matrix: ``(3, 3)`` physical, without the mirror.
        mirrored: whether the fixed section is mirrored first: the map is ``matrix @ MIRROR``.
    """

    matrix: np.ndarray
    mirrored: bool


def search_starts(fixed: Level, moving: Level, angle: float, flips: bool) -> list[Start]:
    """The best few starts, the identity among them if it is as good.

    Each rotation turns the moving section; its shifts are the peaks of phase correlation and of
    the correlation over the overlap, both for all shifts at once by Fourier transforms. What
    counts is the correlation over the overlap, less what chance gives where the overlap is small.

    Args:
        fixed: coarsest level of one section.
        moving: of the other.
        angle: largest rotation, degrees.
        flips: whether to try mirrored ones.
    """
    still = Objective("ncc")(fixed, moving, np.eye(3), slopes=False)
    starts: list[tuple[float, Start]] = []
    if still.overlap >= LEAST_OVERLAP and np.isfinite(still.correlation):
        score = still.correlation * np.sqrt(min(1.0, still.overlap))
        starts.append((score, Start(np.eye(3), False)))
    target = _Target(fixed)
    turns = [
        (turn, mirrored)
        for turn in _turns(angle, max(fixed.shape))
        for mirrored in ((False, True) if flips else (False,))
    ]
    at_once = max(1, _AT_ONCE // (fixed.shape[0] * fixed.shape[1]))
    for first in range(0, len(turns), at_once):
        some = turns[first : first + at_once]
        matrices = [_rotation(turn) @ MIRROR if mirrored else _rotation(turn)
                    for turn, mirrored in some]  # fmt: skip
        for (turn, mirrored), peaks in zip(
            some, target.peaks(*_turned(moving, matrices)), strict=True
        ):
            for score, rows, columns in peaks:
                moved = np.eye(3)
                # The turned section's pixel x + shift matches x: turn after shifting the fixed
                # point.
                moved[:2, 2] = np.array([columns, rows]) * fixed.step
                if mirrored:
                    moved[0, 2] = -moved[0, 2]
                starts.append((score, Start(_rotation(turn) @ moved, mirrored)))
    starts.sort(key=lambda one: -one[0])
    close = [start for score, start in starts if score >= starts[0][0] - _CLOSE]
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
    """The first few that are more than two pixels of the level apart."""
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


def _rotation(turn: float) -> np.ndarray:
    c, s = np.cos(turn), np.sin(turn)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _turned(level: Level, matrices: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """A level under maps without translation, ``(maps, rows, columns)``, and where it is known."""
    rows, columns = level.shape
    device = level.values.device
    size = np.array([columns, rows]) - 1.0
    by_column, by_row, starts = [], [], []
    for matrix in matrices:
        linear = matrix[:2, :2] * level.step / level.step[:, None]
        shift = (matrix[:2, :2] @ level.origin - level.origin) / level.step
        linear, shift = linear * (2 / size)[:, None], shift * (2 / size) - 1
        by_column.append(linear[:, 0])
        by_row.append(linear[:, 1])
        starts.append(shift)

    def tensor(values: list[np.ndarray]) -> torch.Tensor:
        return torch.as_tensor(np.stack(values), dtype=torch.float32, device=device)[:, None]

    across = torch.arange(columns, dtype=torch.float32, device=device)[:, None]
    down = torch.arange(rows, dtype=torch.float32, device=device)[:, None]
    lines = down * tensor(by_row) + tensor(starts)
    grid = (across * tensor(by_column))[:, None] + lines[:, :, None]
    count = len(matrices)
    image = F.grid_sample(
        level.values.expand(count, -1, -1, -1), grid, padding_mode="border",
        align_corners=True,
    )  # fmt: skip
    valid = grid.abs().amax(-1) <= 1 + _ROUNDING
    if level.known is not None:
        known = level.known.expand(count, -1, -1, -1)
        valid = valid & (F.grid_sample(known, grid, align_corners=True)[:, 0] > 0.999)
    return image[:, 0], valid.to(torch.float32)


class _Target:
    """The section that others are shifted onto; its transforms are made once for all of them.

    Args:
        level: of it.
    """

    def __init__(self, level: Level) -> None:
        self.shape = level.shape
        image = level.values[0, 0]
        known = torch.ones_like(image) if level.known is None else level.known[0, 0]
        self.centred = (image - image[known > 0].mean()) * known
        self.f, self.ff = self._transform(self.centred), self._transform(self.centred**2)
        self.kf = self._transform(known)

    def _transform(self, image: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(image, s=self._size)

    @property
    def _size(self) -> tuple[int, int]:
        return (2 * self.shape[0], 2 * self.shape[1])

    def _together(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Sums over the overlap of ``one(x) other(x + s)`` for every s."""
        return torch.fft.irfft2(one.conj() * other, s=self._size)

    def peaks(
        self, images: torch.Tensor, valid: torch.Tensor
    ) -> list[list[tuple[float, int, int]]]:
        """Of each image the shifts s such that ``image(x + s)`` matches the target's x.

        Args:
            images: ``(images, rows, columns)``.
            valid: 1 where they are known, as ``images``.

        Returns:
            Score, rows and columns of each shift.
        """
        rows, columns = self.shape
        pixels = rows * columns
        means = (images * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1.0)
        images = (images - means[:, None, None]) * valid
        m, mm, km = (self._transform(one) for one in (images, images * images, valid))
        count = self._together(self.kf, km).clamp_min(1.0)
        sum_f, sum_m = self._together(self.f, km), self._together(self.kf, m)
        covariance = self._together(self.f, m) - sum_f * sum_m / count
        power_f, power_m = self._together(self.ff, km), self._together(self.kf, mm)
        spread_f, spread_m = power_f - sum_f**2 / count, power_m - sum_m**2 / count
        score = covariance / (spread_f * spread_m).clamp_min(_TINY).sqrt()
        score = score.clamp(-1, 1) * (count / pixels).sqrt()
        enough = count >= LEAST_OVERLAP * pixels
        # What is left of a flat overlap is rounding.
        for power, spread in ((power_f, spread_f), (power_m, spread_m)):
            enough = enough & (spread > _FLAT * power.amax((-2, -1), keepdim=True))
        score = torch.where(enough, score, -1.0)
        cross = self.f.conj() * m
        phase = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-12), s=self._size)
        phase = torch.where(enough, phase, -torch.inf)
        places = torch.cat(
            [torch.topk(one.flatten(1), _PEAKS).indices for one in (score, phase)], 1
        )
        values = score.flatten(1).gather(1, places)
        result: list[list[tuple[float, int, int]]] = []
        for some, scores in zip(places.tolist(), values.tolist(), strict=True):
            shifts: dict[int, tuple[float, int, int]] = {}
            for place, value in zip(some, scores, strict=True):
                down, across = divmod(place, 2 * columns)
                if value > -1:
                    shifts[place] = (
                        value,
                        down - 2 * rows if down >= rows else down,
                        across - 2 * columns if across >= columns else across,
                    )
            result.append(list(shifts.values()))
        return result
