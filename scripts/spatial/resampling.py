"""Images read from one grid onto another, through world matrices and displacements, in PyTorch.

In batches, with gradients, on any device. For one image or label map through a chain of any
transforms, in float64, there is `scripts.spatial.transforms.resample`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from scripts.spatial.transforms import take_nearest
from scripts.spatial.warp import sample

__all__ = ["labels_by_matrix", "resample_by_matrix", "voxel_matrix"]

_STILL = 1e-9  # voxels: shifts too small to matter in float32 interpolation

Affine = np.ndarray | torch.Tensor


def voxel_matrix(matrix: torch.Tensor, source: Affine, wanted: Affine) -> torch.Tensor:
    """Voxel-index maps of world matrices, from the wanted grid to the source grid.

    Args:
        matrix: ``(B, 4, 4)``, wanted point to source point, mm.
        source: ``(4, 4)`` or ``(B, 4, 4)``, voxel to mm, of the image.
        wanted: the same, of the result.

    Returns:
        ``(B, 4, 4)`` float64.

    Raises:
        ValueError: the source's affine can't be inverted.
    """
    world = matrix.to(torch.float64)
    from_source, from_wanted = (
        torch.as_tensor(affine, dtype=torch.float64, device=world.device)
        for affine in (source, wanted)
    )
    try:
        return torch.linalg.solve(from_source, world @ from_wanted)
    except torch.linalg.LinAlgError as error:
        raise ValueError("the image's affine can't be inverted") from error


def resample_by_matrix(
    image: torch.Tensor,
    source: Affine,
    matrix: torch.Tensor,
    wanted: Affine,
    shape: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    displacement: torch.Tensor | None = None,
) -> torch.Tensor:
    """``out(x) = image(M (x + u(x)))`` with x on the wanted grid; differentiable.

    Interpolated once, however M was composed. An identity between equal grids returns the image's
    exact values. With ``zeros`` an image fades over the voxel beyond its last one, as in the
    registration's warp. A plane is sampled where the transform takes its plane.

    Args:
        image: ``(B, C, *source shape)``.
        source: ``(4, 4)`` or ``(B, 4, 4)``, voxel to RAS mm, of the image.
        matrix: ``(B, 4, 4)`` or ``(4, 4)`` for all, wanted point to source point.
        wanted: the wanted grid's affine, as ``source``.
        shape: shape of the wanted grid; as many axes as the image.
        mode: ``bilinear`` (linear in any dimension), or ``nearest`` for labels.
        padding_mode: values outside the image: ``zeros`` or ``border``.
        displacement: u, ``(B, d, *shape)`` in voxels of the wanted grid; None: no u.

    Returns:
        ``(B, C, *shape)`` in the type of the image.

    Raises:
        ValueError: the numbers of axes differ, integers are to be interpolated linearly, or the
            image's affine can't be inverted.
    """
    d = image.ndim - 2
    if len(shape) != d or d not in (2, 3):
        raise ValueError(
            f"an image of shape {tuple(image.shape)} doesn't fit a grid of {len(shape)} axes"
        )
    if not image.is_floating_point() and mode != "nearest":
        raise ValueError(f"an image of {image.dtype} needs mode 'nearest', got {mode!r}")
    batch = len(image)
    maps = voxel_matrix(matrix, source, wanted).expand(batch, 4, 4)
    plain = displacement is None and not maps.requires_grad
    if plain and _is_still(maps, image.shape[2:], shape):
        return image.clone()
    keep = [*range(d), 3]
    maps = maps[:, :d][:, :, keep]
    theta = _normalised(maps, image.shape[2:], shape)
    precision = torch.float64 if image.dtype == torch.float64 else torch.float32
    points = F.affine_grid(theta.to(precision), [batch, 1, *shape], align_corners=False)
    if displacement is not None:
        voxels = torch.tensor([2.0 / n for n in shape], dtype=precision, device=points.device)
        moves = (displacement.movedim(1, -1).to(precision) * voxels).flip(-1)
        linear = theta[:, :, :-1].to(precision)
        points = points + (moves.flatten(1, -2) @ linear.mT).reshape(points.shape)
    moved = sample(image.to(precision), points, mode, padding_mode, align_corners=False)
    return moved.to(image.dtype)


def labels_by_matrix(
    labels: np.ndarray,
    source: np.ndarray,
    matrix: np.ndarray,
    wanted: np.ndarray,
    shape: Sequence[int],
) -> np.ndarray:
    """Labels ``(C, *source shape)`` on another grid by the nearest voxel, in their type.

    The arguments are those of `resample_by_matrix`, for one image. A plane is read where the
    transform takes it.

    Returns:
        ``(C, *shape)``, 0 outside.
    """
    d = len(shape)
    keep = [*range(d), 3]
    maps = np.linalg.solve(source, np.asarray(matrix, dtype=np.float64) @ wanted)[:d][:, keep]
    points = np.indices(shape).reshape(d, -1)
    return take_nearest(labels, maps[:, :d] @ points + maps[:, d:]).reshape(-1, *shape)


def _normalised(maps: torch.Tensor, source: Sequence[int], wanted: Sequence[int]) -> torch.Tensor:
    """Voxel maps ``(B, d, d+1)`` in ``grid_sample``'s coordinates, where x is the last array axis.

    align_corners=False, x = (2 v + 1) / n - 1, because it also works for an axis of one voxel.
    """
    n, m = (
        torch.tensor(tuple(size), dtype=torch.float64, device=maps.device)
        for size in (source, wanted)
    )
    linear, move = maps[:, :, :-1], maps[:, :, -1]
    theta = linear * (m / n[:, None])
    middle = (linear @ ((m - 1) / 2) + move) - (n - 1) / 2
    theta = torch.cat([theta, (2 * middle / n)[:, :, None]], dim=2)
    order = [*range(len(n) - 1, -1, -1)]
    return theta[:, order][:, :, [*order, len(n)]]


def _is_still(maps: torch.Tensor, source: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether no voxel moves; by linearity it is enough to check the corners."""
    if tuple(source) != tuple(wanted):
        return False
    off = (maps - torch.eye(4, dtype=maps.dtype, device=maps.device)).abs()
    return bool((off[:, :3, :3].sum(2) * max(wanted) + off[:, :3, 3]).max() < _STILL)
