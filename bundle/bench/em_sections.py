"""Sections similar to electron micrographs of tissue, with known transforms.

Cells are the regions nearest to random points in three dimensions, their borders wavy membranes.
A section is four pixels thick, as 40 nm are at 10 nm a pixel: an oblique membrane moves from one
section to the next. Each section has different noise, brightness, contrast and a smooth distortion
of one pixel. `pystackreg` is as exact on them as it was on real micrographs (1.4 and 3.3 pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from scripts.phantom.serial_sections import SerialSections

__all__ = ["EmSections"]

_CELL = 45.0  # pixels between the points that cells grow from
_THICKNESS = 4.0  # pixels, of a section
_DISTORTION = (1.0, 60.0)  # pixels: root mean square, smoothness


@dataclass(frozen=True)
class EmSections:
    """A stack of such sections.

    Attributes:
        count: of the sections.
        shape: rows and columns.
        seed: of tissue, transforms and noise.
        noise: standard deviation, of a range of 0 to 1.
    """

    count: int = 20
    shape: tuple[int, int] = (512, 512)
    seed: int = 0
    noise: float = 0.08

    @cached_property
    def composed(self) -> NDArray[np.float64]:
        """``(count, 3, 3)``, as of `SerialSections`."""
        return SerialSections(self.count, self.shape, self.seed, angle=1.5, shift=8.0).composed

    def section(self, z: int) -> NDArray[np.uint8]:
        """A section, ``(rows, columns)``; membranes are dark."""
        random = np.random.default_rng((self.seed, 2, z))
        back = np.linalg.inv(self.composed[z])
        down, across = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float64)
        size, width = _DISTORTION
        for line in (down, across):
            moves = ndimage.gaussian_filter(random.normal(size=self.shape), width, mode="reflect")
            line += size * moves / moves.std()
        points = np.stack(
            [
                np.full(down.shape, z * _THICKNESS),
                back[0, 0] * down + back[0, 1] * across + back[0, 2],
                back[1, 0] * down + back[1, 1] * across + back[1, 2],
            ],
            axis=-1,
        )
        wavy = points + np.stack([12 * self._waves(k, points, 70.0) for k in range(3)], axis=-1)
        near, cells = self._cells.query(wavy, k=2)
        membrane = np.exp(-(((near[..., 1] - near[..., 0]) / 4) ** 2))
        shade = np.random.default_rng((self.seed, 5)).uniform(-0.06, 0.06, self._cells.n)
        organelles = self._waves(3, points, 28.0) > 1.6
        image = 0.72 + shade[cells[..., 0]] - 0.5 * membrane - 0.22 * organelles * (1 - membrane)
        image += 0.04 * self._waves(4, points, 9.0)
        image = ndimage.gaussian_filter(image, 0.7)
        image = random.uniform(0.85, 1.15) * (image - 0.6) + 0.6 + random.uniform(-0.05, 0.05)
        image += ndimage.gaussian_filter(random.normal(0, self.noise, self.shape), 0.5)
        return (255 * image).clip(0, 255).round().astype(np.uint8)

    @cached_property
    def _cells(self) -> cKDTree:
        random = np.random.default_rng((self.seed, 3))
        margin = 3 * _CELL
        low = np.array([-margin, -margin, -margin])
        high = np.array([self.count * _THICKNESS, *self.shape]) + margin
        count = int(np.prod(high - low) / _CELL**3)
        return cKDTree(random.uniform(low, high, (count, 3)))

    def _waves(self, number: int, points: NDArray[np.float64], length: float) -> NDArray:
        """Smooth random values of unit variance: a sum of plane waves about as long as given."""
        random = np.random.default_rng((self.seed, 4, number))
        result = np.zeros(points.shape[:-1])
        waves = 16
        for _ in range(waves):
            way = random.normal(size=3)
            way *= 2 * np.pi / (length * random.uniform(0.7, 1.4) * np.linalg.norm(way))
            result += np.cos(points @ way + random.uniform(0, 2 * np.pi))
        return result * np.sqrt(2 / waves)
