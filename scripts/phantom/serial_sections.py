"""Serial sections of a made-up organ, whose true transforms are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["SerialSections"]

_GRIDS = ((40, 80.0, 0.9), (14, 25.0, 0.7), (5, 6.0, 0.45))
"""Texture: distance of its random values in the plane (pixels of 512) and over sections; weight."""


@dataclass(frozen=True)
class SerialSections:
    """A stack of sections, each turned and moved by chance.

    A section's pixel q shows the organ at C^-1 q, computed there directly: no image is ever
    interpolated on the way, and the truth is exact. Rotations are about the middle of the section.

    Attributes:
        count: of the sections.
        shape: rows and columns.
        seed: of organ, transforms and noise.
        angle: standard deviation of the rotations, degrees.
        shift: of the moves, pixels.
        bend: by how many pixels the organ bends to the side in its middle (a banana).
        noise: standard deviation, of a contrast of about 1.
        torn: sections of which half is gone.
        ruined: sections that show something else.
        blank: sections that show nothing.
    """

    count: int = 24
    shape: tuple[int, int] = (256, 256)
    seed: int = 0
    angle: float = 2.0
    shift: float = 8.0
    bend: float = 0.0
    noise: float = 0.05
    torn: Sequence[int] = field(default=())
    ruined: Sequence[int] = field(default=())
    blank: Sequence[int] = field(default=())

    @cached_property
    def composed(self) -> NDArray[np.float64]:
        """``(count, 3, 3)``: ``(row, column, 1)`` of the straight stack to a pixel of a section.

        The first one is the identity.
        """
        random = np.random.default_rng((self.seed, 1))
        turns = np.radians(random.normal(0, self.angle, self.count))
        moves = random.normal(0, self.shift, (self.count, 2))
        turns[0], moves[0] = 0.0, 0.0
        middle = (np.array(self.shape) - 1) / 2
        result = np.tile(np.eye(3), (self.count, 1, 1))
        for z in range(self.count):
            c, s = np.cos(turns[z]), np.sin(turns[z])
            linear = np.array([[c, -s], [s, c]])
            result[z, :2, :2] = linear
            result[z, :2, 2] = middle - linear @ middle + moves[z]
        return result

    def bend_at(self, z: int) -> float:
        """Pixels by which the organ lies to the side: 0 at both ends, `bend` in the middle."""
        along = z / max(1, self.count - 1)
        return self.bend * 4 * along * (1 - along)

    def section(self, z: int) -> NDArray[np.uint8]:
        """A section, ``(rows, columns)``: tissue is dark on a bright slide."""
        random = np.random.default_rng((self.seed, 2, z))
        rows, columns = self.shape
        if z in self.blank:
            return np.full(self.shape, 230, dtype=np.uint8)
        back = np.linalg.inv(self.composed[z])
        down, across = np.mgrid[:rows, :columns].astype(np.float64)
        y = back[0, 0] * down + back[0, 1] * across + back[0, 2]
        x = back[1, 0] * down + back[1, 1] * across + back[1, 2] - self.bend_at(z)
        place = z + 1000.0 if z in self.ruined else float(z)
        image = self._organ(place, y, x)
        if z in self.torn:
            image[:, columns // 2 :] = 0.0
        image = image * random.uniform(0.85, 1.15)
        image += ndimage.gaussian_filter(random.normal(0, self.noise, self.shape), 0.7)
        return (230 - 130 * image).clip(0, 255).round().astype(np.uint8)

    def _organ(
        self, z: float, y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Its density, about 0..1.3, at points of the straight stack."""
        rows, columns = self.shape
        v, u = (y - (rows - 1) / 2) / (0.40 * rows), (x - (columns - 1) / 2) / (0.40 * columns)
        angle, radius = np.arctan2(v, u), np.hypot(v, u)
        random = np.random.default_rng((self.seed, 3))
        outline = np.full_like(radius, 0.92)
        for wave in range(2, 6):
            phase, start, speed = *random.uniform(0, 2 * np.pi, 2), random.uniform(0.02, 0.06)
            # It swells and shrinks in place: a moving outline would be a rotation.
            outline += 0.10 / wave * np.cos(wave * angle + phase) * np.cos(speed * z + start)
        depth = outline - radius
        inside = 1 / (1 + np.exp(-depth * min(rows, columns) / 3))
        texture = np.zeros_like(radius)
        for number, (step, sections, weight) in enumerate(_GRIDS):
            texture += weight * self._noise(number, z / sections, y, x, step)
        rim = np.exp(-(((depth - 0.10) / 0.05) ** 2))
        return inside * (0.55 + 0.28 * texture + 0.35 * rim)

    def _noise(
        self, number: int, z: float, y: NDArray[np.float64], x: NDArray[np.float64], step: float
    ) -> NDArray[np.float64]:
        """Random values on a grid, interpolated: smooth in all three directions."""
        rows, columns = self.shape
        cell = step * min(self.shape) / 512
        margin = 0.6 * max(self.shape) + abs(self.bend)
        size = [int(np.ceil((n + 2 * margin) / cell)) + 4 for n in (rows, columns)]
        low = int(np.floor(z))
        layers = [
            np.random.default_rng((self.seed, 4, number, abs(low + k))).normal(size=size)
            for k in range(-1, 3)
        ]
        t = z - low
        weights = (
            (1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6,
        )  # fmt: skip
        layer = sum(weight * one for weight, one in zip(weights, layers, strict=True))
        points = np.stack([(y + margin) / cell + 2, (x + margin) / cell + 2])
        return ndimage.map_coordinates(layer, points, order=3, prefilter=False, mode="nearest")
