"""The grid of a network for pairs, and images resampled to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from scripts.errors import CohortError
from scripts.spatial.affine_parameters import Frame
from scripts.spatial.resampling import resample_by_matrix

__all__ = ["WorkingGrid", "between_0_and_1", "prepared_image"]


_CUT = (0.005, 0.999)  # quantiles at which intensities are clipped


@dataclass(frozen=True)
class WorkingGrid:
    """The network's grid: ``shape`` voxels of ``spacing`` mm about the origin.

    Its axes are those of the world: an image's header determines its orientation but not its
    position, because the centres of the volumes are aligned. A plane keeps its axes.
    """

    shape: tuple[int, ...]
    spacing: float

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> WorkingGrid:
        """The inverse of ``dataclasses.asdict``."""
        return cls(tuple(values["shape"]), float(values["spacing"]))

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)``, voxel to mm from the centre."""
        d = len(self.shape)
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:d, 3] = -self.spacing * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def frame(self) -> Frame:
        """Axes, centre and half width, which give parameters their meaning."""
        return Frame.of_grid(self.affine, self.shape)

    def place_of(self, affine: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
        """``(4, 4)`` float64: from mm of this grid to the world of an image's grid."""
        frame = Frame.of_grid(affine, shape)
        place = torch.eye(4, dtype=torch.float64)
        if len(shape) == 2:
            return frame.world
        place[:3, 3] = frame.centre
        return place

    def of_image(
        self, data: np.ndarray, affine: np.ndarray, place: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Resample an image ``(*shape)`` to this grid, ``(1, *self.shape)`` float32.

        Finer images are smoothed first to avoid aliasing.

        Args:
            data: the image.
            affine: voxel to RAS mm.
            place: ``(4, 4)``, from mm of this grid to the image's world; None: `place_of`.
        """
        place = self.place_of(affine, data.shape) if place is None else place
        spacing = np.linalg.norm(affine[:3, : data.ndim], axis=0)
        ratio = np.maximum(self.spacing / spacing, 1)
        smooth = gaussian_filter(
            data.astype(np.float32), 0.5 * np.sqrt(ratio**2 - 1), mode="nearest"
        )
        return resample_by_matrix(
            torch.from_numpy(smooth)[None, None],
            affine,
            place[None],
            self.affine,
            self.shape,
        )[0]


def prepared_image(
    grid: WorkingGrid,
    name: str,
    data: np.ndarray,
    affine: np.ndarray,
    log_share: float | None,
    purpose: str,
    place: torch.Tensor | None = None,
) -> torch.Tensor:
    """Check an image of a pair and scale it to 0 to 1 on a network's grid; ``(1, *grid.shape)``.

    Args:
        grid: of the network.
        name: fixed or moving, for messages.
        data: ``(*shape)``.
        affine: voxel to RAS mm.
        log_share: see `between_0_and_1`.
        purpose: what the images are needed for, for messages.
        place: see `WorkingGrid.of_image`.

    Raises:
        CohortError: the image is constant or not finite, or its dimensions differ from the grid's.
    """
    if data.ndim != len(grid.shape):
        raise CohortError(
            f"the {name} image has {data.ndim} dimensions, the network has {len(grid.shape)}"
        )
    if not np.isfinite(data).all():
        raise CohortError(f"the {name} image is not finite")
    if not np.ptp(data) > 0:
        raise CohortError(f"the {name} image is constant: there is nothing to {purpose}")
    return grid.of_image(between_0_and_1(data, log_share), affine, place)


def between_0_and_1(data: np.ndarray, log_share: float | None = None) -> np.ndarray:
    """Scale intensities to 0 to 1, float32; the few lowest and highest are clipped.

    Args:
        data: finite and not constant.
        log_share: see `PairImagesConfig`.
    """
    values = data.astype(np.float64)
    if log_share is not None:
        values = np.log1p((values - values.min()) / (log_share * np.ptp(values)))
    low, high = np.quantile(values, _CUT)
    if not high > low:  # nearly empty: all intensities are above the upper quantile
        low, high = values.min(), values.max()
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
