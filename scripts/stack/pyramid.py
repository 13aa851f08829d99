"""A section at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from scripts.stack.planar import Plane

__all__ = ["SMALLEST_SIDE", "Level", "Pyramid", "usable_levels"]

SMALLEST_SIDE = 24
"""Pixels: a level with a shorter side is too small to be measured."""


def usable_levels(shape: tuple[int, int], reductions: Sequence[int]) -> list[int]:
    """Places of the levels that are large enough; the finest one always counts."""
    side = min(shape)
    fitting = [i for i, factor in enumerate(reductions) if side // factor >= SMALLEST_SIDE]
    return fitting or [len(reductions) - 1]


@dataclass(frozen=True, eq=False)
class Level:
    """A section at one resolution.

    Attributes:
        values: ``(1, 1, rows, columns)`` float32.
        known: ``(1, 1, rows, columns)`` float32, 1 where the section is known; None: everywhere.
        factor: the reduction.
        origin: ``(x, y)``, centre of the first pixel: the middle of the pixels of the
            section that it stands for.
        step: ``(x, y)``, distance of columns and of rows.
    """

    values: torch.Tensor
    known: torch.Tensor | None
    factor: int
    origin: np.ndarray
    step: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (int(self.values.shape[2]), int(self.values.shape[3]))


class Pyramid:
    """The levels of a section.

    Args:
        image: ``(rows, columns)`` float32.
        plane: of the image.
        reductions: of the levels.
        known: ``(rows, columns)`` bool, where the section is known; None: everywhere.
        device: where the levels are kept.
    """

    def __init__(
        self,
        image: np.ndarray,
        plane: Plane,
        reductions: Sequence[int],
        known: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        full = torch.as_tensor(image, dtype=torch.float32, device=device)[None, None]
        coverage = None
        if known is not None and not known.all():
            coverage = torch.as_tensor(known, device=device)[None, None].to(torch.float32)
            full = full * coverage + full[coverage > 0].mean() * (1 - coverage)
        self.image, self.known, self.plane = full, coverage, plane
        self.reductions = list(reductions)
        self._levels: dict[int, Level] = {}

    def __getitem__(self, index: int) -> Level:
        """The level of that place among the reductions; made when it is first asked for."""
        if index not in self._levels:
            self._levels[index] = self._made(self.reductions[index])
        return self._levels[index]

    def _made(self, factor: int) -> Level:
        image, known = self.image, self.known
        if factor > 1:
            image = _reduced(image, factor)
            # A pixel that is the mean of some unknown pixels is not known.
            known = None if known is None else (_reduced(known, factor) > 0.999).to(torch.float32)
        first = (factor - 1) / 2
        return Level(
            image,
            known,
            factor,
            (self.plane.to_physical @ np.array([first, first, 1.0]))[:2],
            np.array([self.plane.spacing[1], self.plane.spacing[0]]) * factor,
        )


def _reduced(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Antialiased; the centre of pixel j is at ``factor * j + (factor - 1) / 2``."""
    rows, columns = (int(n) // factor for n in image.shape[2:])
    cropped = image[:, :, : rows * factor, : columns * factor]
    return F.interpolate(
        cropped, size=(rows, columns), mode="bilinear", antialias=True, align_corners=False
    )
