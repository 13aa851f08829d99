"""Small maps in files, for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import Compose

from scripts.data import (
    density_transforms,
)

SHAPE = (7, 6, 5)
AFFINE = np.diag([2.0, 2, 2, 1])


def counts(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.float32)


def save(path: Path, data: np.ndarray, waytotal: str | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    if waytotal is not None:
        (path.parent / "waytotal").write_text(waytotal)
    return str(path)


def whole(normalisation: str = "none", channels: int = 1, **changes: Any) -> Compose:
    """Transforms of the uncropped grid, linear unless asked otherwise."""
    settings = {
        "log_offset": None, "crop_start": (0, 0, 0), "crop_stop": SHAPE, **changes,
    }  # fmt: skip
    return density_transforms(normalisation, channels, **settings)
