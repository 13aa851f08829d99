"""Known diffeomorphisms: the exponentials of smooth random stationary velocities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter, map_coordinates

from scripts.phantom.anatomy import FloatArray

SCALES = ((18.0, 0.5), (30.0, 1.0), (45.0, 0.9))
"""(standard deviation of the smoothing in mm, weight) of the noise that makes up velocities."""
BORDER = 28.0
"""Distance from the volume's faces, mm, over which a velocity fades to zero."""
SQUARINGS = 4
QUANTUM = 2.0**-10
"""Displacements are rounded to this many voxels: not noticeable, and the files shrink."""


class ControlGrid:
    """A grid of half the resolution, on which velocities are defined and integrated.

    Args:
        shape: the full grid's shape.
        spacing: the full grid's voxel size, mm.
    """

    def __init__(self, shape: tuple[int, int, int], spacing: float) -> None:
        self.full_shape = shape
        self.shape = tuple(max(4, (n + 1) // 2) for n in shape)
        self.step = np.array([(n - 1) / (m - 1) for n, m in zip(shape, self.shape, strict=True)])
        self.spacing = self.step * spacing

    def noise(self, rng: np.random.Generator) -> FloatArray:
        """A smooth random vector field (3, x, y, z), dimensionless, zero at the faces."""
        field = np.zeros((3, *self.shape))
        for sigma, weight in SCALES:
            width = sigma / self.spacing
            smooth = np.stack(
                [gaussian_filter(rng.standard_normal(self.shape), width, truncate=3.0)
                 for _ in range(3)]
            )  # fmt: skip
            field += weight * smooth / smooth.std()
        for axis, (n, size) in enumerate(zip(self.shape, self.spacing, strict=True)):
            distance = size * np.minimum(np.arange(n), np.arange(n)[::-1]) / BORDER
            fade = np.sin(np.pi / 2 * np.clip(distance, 0, 1)) ** 2
            field *= fade.reshape([-1 if a == axis else 1 for a in range(3)])
        return field

    def sample(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """A volume of the full grid, sampled at the control points."""
        where = np.meshgrid(
            *[np.arange(n) * s for n, s in zip(self.shape, self.step, strict=True)], indexing="ij"
        )
        return map_coordinates(volume, where, order=1)

    def integrate(self, velocity: FloatArray) -> FloatArray:
        """Displacement exp(velocity) by scaling and squaring; both in control voxels.

        The first small step is of second order, u = v/n + (v . grad) v / (2 n^2), which saves
        squarings: those take most of the time.
        """
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in self.shape], indexing="ij"))
        small = velocity / 2**SQUARINGS
        bend = [
            sum(v * slope for v, slope in zip(small, np.gradient(part), strict=True))
            for part in small
        ]
        displacement = small + 0.5 * np.stack(bend)
        for _ in range(SQUARINGS):
            places = grid + displacement
            displacement = displacement + np.stack(
                [map_coordinates(part, places, order=3, mode="nearest") for part in displacement]
            )
        return displacement

    def expand(self, displacement: FloatArray) -> NDArray[np.float32]:
        """A displacement in control voxels, resampled to the full grid, in full voxels."""
        full = displacement * self.step.reshape(3, 1, 1, 1)
        for axis in range(3):
            m, n = self.shape[axis], self.full_shape[axis]
            spline = make_interp_spline(np.arange(m), np.eye(m), k=3)
            weights = spline(np.arange(n) / self.step[axis])
            full = np.moveaxis(np.tensordot(weights, full, axes=(1, axis + 1)), 0, axis + 1)
        return (np.round(full / QUANTUM) * QUANTUM).astype(np.float32)
