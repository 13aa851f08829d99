"""Images from files, as alignment sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scripts.affine.images import WorldImage, constant_reason
from scripts.atlas.transforms import read_volume
from scripts.cohort import Grid
from scripts.errors import CohortError

__all__ = ["ReadImage", "normalised", "read_image"]


class ReadImage:
    """An image as it is in its file, and as alignment compares it.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        log_offset: compare log1p(x / this); None: x over its 99th percentile.
        background: ``zero`` or ``unknown``, what lies outside of the image.
        device: of the image that is compared.

    Raises:
        CohortError: the file can't be read, or is the same everywhere.
    """

    def __init__(
        self,
        path: str | Path,
        log_offset: float | None = None,
        background: str = "zero",
        device: torch.device | str = "cpu",
    ) -> None:
        self.path = Path(path)
        self.values, grid = read_volume(path)
        self.grid, self.spatial_dims = grid, 3
        if grid.shape[2] == 1:
            self.spatial_dims = 2
        compared = normalised(self.values, log_offset)
        # Negative densities are cut off by the logarithm, and may leave nothing.
        for values in (self.values, compared):
            reason = constant_reason(torch.from_numpy(values))
            if reason:
                raise CohortError(f"{path}: {reason}")
        self.image = read_image(compared, grid, self.spatial_dims, device)
        if background == "unknown":
            self.image = self.image.without_background()


def normalised(values: np.ndarray, log_offset: float | None) -> np.ndarray:
    """Log densities, or intensities over the 99th percentile of those that aren't 0."""
    if log_offset is not None:
        return np.log1p(np.maximum(values, 0) / log_offset)
    filled = np.abs(values[values != 0])
    high = float(np.percentile(filled, 99)) if filled.size else 1.0
    return values / high


def read_image(
    values: np.ndarray, grid: Grid, spatial_dims: int, device: torch.device | str = "cpu"
) -> WorldImage:
    """``(C, X, Y, Z)`` as a `WorldImage`, a plane without its third axis."""
    array = values[..., 0] if spatial_dims == 2 else values
    tensor = torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=device)
    return WorldImage(tensor[None], np.asarray(grid.affine, dtype=np.float64))
