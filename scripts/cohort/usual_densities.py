"""The densities at which a map's logarithm and its presence usually begin, by its values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

__all__ = ["FAINT", "PLAIN", "UsualDensities", "look_like_images", "rounded"]

FAINT = 0.1
"""Share of the density that a streamline meets on average which a faint but real tract has."""

PLAIN = 2.0
"""Times the average brightness: a ``log_offset`` from which brightness is hardly compressed."""

_ALIKE = 0.9  # of the sum: .98 and more in MR images, .75 in maps of streamline density


@dataclass(frozen=True)
class UsualDensities:
    """Where the logarithm and the presence of some maps usually begin.

    Attributes:
        typical: density that a streamline meets on average, the median of the maps.
        images: whether the maps are images, whose brightness is hardly compressed.
    """

    typical: float
    images: bool

    @classmethod
    def of(cls, densities: Sequence[np.ndarray], counted: bool = False) -> UsualDensities:
        """From the maps' values.

        Args:
            densities: see `look_like_images`.
            counted: from streamlines, so that they are not images.
        """
        typical = median(_average_met(density) for density in densities)
        return cls(typical, not counted and look_like_images(densities))

    @property
    def presence_value(self) -> float:
        """The density of a faint but real tract, of 1, 2 or 5 times a power of ten."""
        return rounded(FAINT * self.typical)

    @property
    def log_offset(self) -> float:
        """The same; in images several times their average brightness."""
        return rounded((PLAIN if self.images else FAINT) * self.typical)


def _average_met(density: np.ndarray) -> float:
    """The density that a streamline meets on average; the average brightness of an image."""
    return float((density**2).sum() / density.sum())


def look_like_images(densities: Sequence[np.ndarray]) -> bool:
    """Whether most of what the maps add up to has about the same value, within a factor of 3.

    Brightness of tissue varies little, and streamline counts vary by decades. A map of one value
    alone is a mask, and no image.

    Args:
        densities: not negative, each somewhere above 0; a few suffice.
    """
    alike = []
    for density in densities:
        typical = _average_met(density)
        near = (density > typical / 3) & (density < typical * 3)
        several = np.unique(density[near][:1000]).size > 1
        alike.append(float(density[near].sum() / density.sum()) if several else 0.0)
    return bool(alike) and median(alike) > _ALIKE


def rounded(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, on a logarithmic scale.

    Example:
        >>> rounded(0.00078), rounded(1.1), rounded(3.4)
        (0.001, 1.0, 5.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    nearest = min((1, 2, 5, 10), key=lambda step: abs(math.log(step * power / value)))
    return float(np.format_float_positional(nearest * power, precision=1, fractional=False))
