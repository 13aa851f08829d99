"""Inputs that several modules of attacks share: odd names, and small sections."""

from __future__ import annotations

import numpy as np

from bundle.bench.attacks_on_trust import CODE

__all__ = ["ODD_NAMES", "SIDES", "small_sections"]

SIDES = (40, 48)
ODD_NAMES = (CODE, "@x", "%x", "{}", "=1+1", "\u202egnp", "\x1b[2J")


def small_sections(count: int = 4) -> np.ndarray:
    """Blobs on a dark background, each section moved a little ``(count, *sides)`` uint8."""
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*map(np.arange, SIDES), indexing="ij"))
    result = np.zeros((count, *SIDES))
    for _ in range(12):
        centre, width = rng.uniform((8, 8), (32, 40)), rng.uniform(2, 4)
        for number, image in enumerate(result):
            far = ((axes - (centre + 0.4 * number)[:, None, None]) ** 2).sum(0)
            image += np.exp(-far / (2 * width**2))
    return np.rint(255 * result / result.max()).astype(np.uint8)
