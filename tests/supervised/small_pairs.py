"""Images and stores that tests of this room share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

SHAPE = (40, 56)


def sections(count: int = 4, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Images of a few smooth blobs on a dark background, ``(count, *shape)`` uint8."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    images = []
    for _ in range(count):
        image = np.zeros(shape)
        for _ in range(7):
            centre = rng.uniform(0.3, 0.7, len(shape)) * np.array(shape)
            far = ((axes - centre.reshape(-1, *[1] * len(shape))) ** 2).sum(0)
            image += rng.uniform(0.3, 1) * np.exp(-far / (2 * rng.uniform(2, 5) ** 2))
        images.append(np.rint(255 * image / image.max()))
    return np.stack(images).astype(np.uint8)


def copied(store: Path, target: Path, without: tuple[str, ...] = (), **replaced: Any) -> Path:
    """A store with some datasets left out, and others replaced."""
    with h5py.File(store) as source, h5py.File(target, "w") as file:
        for name in source:
            if name not in without and name not in replaced:
                file[name] = source[name][...]
        for name, value in replaced.items():
            file[name] = value
    return target
