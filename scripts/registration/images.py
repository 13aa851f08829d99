"""Images with their position in the world, and their pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from scripts.errors import CohortError
from scripts.networks.grids import averaged
from scripts.spatial.grid import Grid
from scripts.spatial.mask_rules import require_whole_numbers, warn_if_mostly_covered
from scripts.spatial.orientation import require_right_angles
from scripts.spatial.volumes import read_hashed_volume, read_labels

__all__ = [
    "ReadImage",
    "WorldImage",
    "constant_reason",
    "counts",
    "known_of_both",
    "normalised",
    "read_image",
    "reduced",
    "reduction_factors",
    "require_contrast",
    "spacing_of",
]


_SAME = 0.01  # voxels between corners of one grid
_IN_HOLE = 0.01  # share of a voxel that may be of a hole


@dataclass(frozen=True, eq=False)
class WorldImage:
    """An image and the position of its voxels.

    Attributes:
        values: ``(1, C, *shape)`` float32, 2 or 3 axes.
        affine: ``(4, 4)`` float64, voxel to RAS mm.
        inside: ``(1, 1, *shape)``, the share of each voxel that was imaged, 0 to 1. None: all of
            it, and the outside of the image is background with value 0.
        hole: ``(1, 1, *shape)``, the share of each voxel that doesn't count, 0 to 1; the values
            there are 0. None: all of the image counts.
    """

    values: torch.Tensor
    affine: np.ndarray
    inside: torch.Tensor | None = None
    hole: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.values.shape[2:])

    @property
    def spacing(self) -> np.ndarray:
        """Size of a voxel along each axis, mm."""
        return spacing_of(self.affine, len(self.shape))

    def without_background(self) -> WorldImage:
        """The same image, marked as unknown outside its grid."""
        return replace(self, inside=torch.ones_like(self.values[:, :1]))

    def without(self, mask: torch.Tensor) -> WorldImage:
        """The same image without the voxels of a mask, ``(*shape)`` bool."""
        mask = mask.to(self.values.device)[None, None]
        return replace(self, values=self.values.where(~mask, 0), hole=mask.to(self.values))


def spacing_of(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    """Size of a voxel along each axis, mm."""
    return np.linalg.norm(np.asarray(affine)[:3, :spatial_dims], axis=0)


def counts(hole: torch.Tensor) -> torch.Tensor:
    """Which voxels count, bool, by the share of each that doesn't (`WorldImage.hole`)."""
    return hole < _IN_HOLE


def known_of_both(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """Share of each voxel that both of two images cover (`WorldImage.inside`); None: all of it."""
    if one is None or other is None:
        return other if one is None else one
    return one * other


def constant_reason(values: torch.Tensor) -> str | None:
    """Why an image can't be aligned (not finite, or constant); None if it can."""
    if not bool(torch.isfinite(values).all()):
        return "contains values that aren't finite"
    low, high = float(values.amin()), float(values.amax())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return f"has the same value everywhere ({low:g}), so it can't be aligned"
    return None


def require_contrast(fixed: WorldImage, moving: WorldImage) -> None:
    """Refuse a pair if one image can't be aligned.

    Raises:
        ValueError: an image is constant or not finite.
    """
    for name, image in (("fixed", fixed), ("moving", moving)):
        reason = constant_reason(image.values)
        if reason:
            raise ValueError(f"the {name} image {reason}")


def reduction_factors(spacing: Sequence[float] | np.ndarray, size: float) -> tuple[int, ...]:
    """Reduction of each axis so that voxels are near ``size`` mm and nearly cubic."""
    return tuple(max(1, int(np.floor(size / step + 0.5))) for step in spacing)


def reduced(image: WorldImage, factors: Sequence[int]) -> WorldImage:
    """Block means; the centre of a block is at ``f i + (f - 1) / 2`` of the full grid.

    A block that extends over the border is the mean of its existing voxels.

    Args:
        image: the full image.
        factors: voxels per block along each axis.
    """
    if all(f == 1 for f in factors):
        return image
    factors = [min(f, n) for f, n in zip(factors, image.shape, strict=True)]
    values = averaged(image.values, factors)
    inside, hole = image.inside, image.hole
    if inside is not None:
        weighted = averaged(image.values * inside, factors)
        inside = averaged(inside, factors)
        values = weighted / inside.clamp_min(1e-6)
    if hole is not None:
        hole = averaged(hole, factors)
        values = values / (1 - hole).clamp_min(1e-6)  # the sum has zeros there
    onto = np.eye(4)
    for axis, f in enumerate(factors):
        onto[axis, axis], onto[axis, 3] = f, (f - 1) / 2
    return WorldImage(values, image.affine @ onto, inside, hole)


class ReadImage:
    """An image from its file, and as it is compared during alignment.

    Args:
        path: of an image.
        log_offset: compare log1p(x / this); None: x over its 99th percentile.
        background: ``zero`` or ``unknown``: the outside of the image.
        device: of the compared image.
        mask: file of voxels that don't count (not 0), on the image's grid; None: all count.

    Attributes:
        sha256: of the bytes that were read.

    Raises:
        CohortError: the file can't be read, or is constant.
    """

    def __init__(
        self,
        path: str | Path,
        log_offset: float | None = None,
        background: str = "zero",
        device: torch.device | str = "cpu",
        mask: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.values, grid, self.sha256 = read_hashed_volume(path)
        require_right_angles(self.path, grid.affine, grid.shape)  # results are written on it
        self.grid, self.spatial_dims = grid, 3
        if grid.shape[2] == 1:
            self.spatial_dims = 2
        hole = None if mask is None else _mask_on(mask, grid)
        counted = self.values if hole is None else np.where(hole, 0, self.values)
        if hole is not None:
            left = int(np.count_nonzero(counted))
            what = f"what is not 0 in {self.path}, which then doesn't count"
            warn_if_mostly_covered(str(mask), int(np.count_nonzero(self.values)), left, what)
        compared = normalised(counted, log_offset)
        # The logarithm sets negative densities to 0, which may leave nothing.
        for values in (counted, compared):
            reason = constant_reason(torch.from_numpy(values))
            if reason:
                raise CohortError(f"{path}: {reason}")
        self.image = read_image(compared, grid, self.spatial_dims, device)
        if hole is not None:
            self.image = self.image.without(torch.from_numpy(hole.reshape(self.image.shape)))
        if background == "unknown":
            self.image = self.image.without_background()


def _mask_on(path: str | Path, grid: Grid) -> np.ndarray:
    """Voxels of a grid that a mask covers, ``(X, Y, Z)`` bool.

    Raises:
        CohortError: it can't be read, is on another grid, contains fractions, or covers
            everything.
    """
    values, mask_grid = read_labels(path)
    difference = mask_grid.same_as(grid, _SAME)
    if difference is not None or len(values) != 1:
        raise CohortError(
            f"{path}: a mask must have one volume on its image's grid"
            f"{f': {difference}' if difference else ''}; resample it by the nearest voxel first"
        )
    require_whole_numbers(path, values, "a mask must be whole numbers")
    covered = np.asarray(values[0] != 0)
    if covered.all():
        raise CohortError(f"{path}: covers the whole image; must be 0 where voxels count")
    return covered


def normalised(values: np.ndarray, log_offset: float | None) -> np.ndarray:
    """Log densities, or intensities divided by the 99th percentile of the nonzero ones."""
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
