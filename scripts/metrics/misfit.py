"""Where an atlas doesn't fit a subject: a map of the local misfit, and its large regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import center_of_mass, find_objects, label, sum_labels, uniform_filter

__all__ = ["MISFIT_WINDOW", "PoorRegion", "local_misfit", "poor_regions"]

MISFIT_WINDOW = 5
"""Side of the window of the misfit that jobs write and show, voxels."""
_SIGNAL = 0.2  # mean squared presence in a window: below it are fringes of tracts


@dataclass(frozen=True)
class PoorRegion:
    """A connected region of poor fit.

    Attributes:
        volume: mm³.
        centre: its centre of mass, RAS mm.
    """

    volume: float
    centre: tuple[float, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "volume_mm3": round(self.volume, 1),
            "centre_ras_mm": [round(x, 1) for x in self.centre],
        }


def local_misfit(
    subject: np.ndarray,
    atlas: np.ndarray,
    log_offset: float,
    window: int,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """How far apart subject and atlas are in a window, relative to what is there, 0 to 1.

    With presences p, q = x / (x + log_offset) of both densities and sums over a window and all
    channels, the misfit is sum (p - q)^2 / sum (p^2 + q^2): 0 where both are equal, 1 where only
    one of them is present, as in a lesion. Squares give the faint fringe of a tract, which no atlas
    fits, little weight.

    Args:
        subject: density ``(C, *shape)``.
        atlas: density in the subject's space, the same shape.
        log_offset: the density at which presence is a half.
        window: side of the window, voxels.
        valid: ``(*shape)`` bool, voxels that count; None: all.

    Returns:
        ``(*shape)`` float32, 0 where a window contains hardly anything of both.
    """
    p, q = (x / (x + log_offset) for x in (atlas.astype(np.float64), subject.astype(np.float64)))
    apart, both = ((p - q) ** 2).sum(axis=0), (p**2 + q**2).sum(axis=0)
    if valid is not None:
        apart, both = (np.where(valid, x, 0) for x in (apart, both))
    apart, both = (uniform_filter(x, window, mode="constant") for x in (apart, both))
    found = np.zeros_like(apart)
    np.divide(apart, both, out=found, where=both > 2 * _SIGNAL)
    if valid is not None:
        found[~valid] = 0
    return np.clip(found, 0, 1).astype(np.float32)


def poor_regions(
    misfit: np.ndarray, affine: np.ndarray, level: float, least_mm3: float
) -> list[PoorRegion]:
    """Connected regions above a level of misfit, the largest first.

    Args:
        misfit: ``(*shape)``, see `local_misfit`.
        affine: ``(4, 4)``, voxel to RAS mm.
        level: misfit above which the fit is poor.
        least_mm3: smallest volume of a region.
    """
    d = misfit.ndim
    parts, count = label(misfit > level)
    if count == 0:
        return []
    voxel = float(np.prod(np.linalg.norm(affine[:3, :d], axis=0)))
    sizes = voxel * sum_labels(np.ones_like(misfit), parts, range(1, count + 1))
    found = []
    boxes = find_objects(parts)
    for index in np.argsort(-sizes, kind="stable"):
        if sizes[index] < least_mm3:
            break
        box = boxes[index]
        inside = center_of_mass(parts[box] == index + 1)
        place = [x + part.start for x, part in zip(inside, box, strict=True)]
        world = affine[:3, :d] @ np.array(place) + affine[:3, 3]
        found.append(PoorRegion(float(sizes[index]), tuple(float(x) for x in world)))
    return found
