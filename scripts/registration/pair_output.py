"""Output of a registered pair: transforms and warped images, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.errors import FoldingError
from scripts.registration.images import ReadImage
from scripts.runtime.storage import check_replaceable, check_writable
from scripts.settings.image_pairs import ImagePairs
from scripts.spatial.fields import write_field
from scripts.spatial.transform_files import write_affine_files
from scripts.spatial.transforms import AffineTransform, FieldTransform, Transform, resample
from scripts.spatial.volumes import write_map

__all__ = [
    "PairFields",
    "check_pair_folders",
    "checked_pairs",
    "require_no_fold",
    "write_pair",
]


@dataclass(frozen=True)
class PairFields:
    """Both displacements of a pair, ``(1, d, *shape)`` in voxels of the fixed grid.

    Attributes:
        forward: a fixed point x corresponds to ``matrix (x + forward(x))``.
        inverse: a moving point y corresponds to ``z + inverse(z)`` with ``z = matrix^-1 y``.
    """

    forward: torch.Tensor
    inverse: torch.Tensor


def checked_pairs(settings: ImagePairs, folder: str | Path) -> list[dict[str, str]]:
    """The pairs of the settings, whose results can be written.

    Args:
        settings: of the job.
        folder: holds a folder a pair.

    Raises:
        StorageError: it can't be written.
    """
    check_writable(folder)
    pairs = settings.pairs()
    entry = getattr(settings, "start", None)
    starts = [None if entry is None else entry.path, getattr(settings, "elastic_start", None)]
    names = [one["subject"] for one in pairs]
    check_pair_folders(folder, names, settings.fixed, settings.moving, *starts)
    return pairs


def check_pair_folders(
    folder: str | Path,
    names: Sequence[str],
    fixed: str | Path,
    moving: Sequence[str | Path],
    *starts: str | None,
) -> None:
    """Make sure that each pair's folder can be published; see `check_replaceable`.

    Args:
        folder: holds the pairs' folders.
        names: of these.
        fixed: the image that is wanted.
        moving: those that are registered to it.
        starts: transforms that each begins with, ``{name}`` standing for the pair's name.

    Raises:
        StorageError: one can't.
    """
    read = [one.replace("{name}", name) for one in starts if one is not None for name in names]
    folders = [Path(folder) / name for name in names]
    check_replaceable(*folders, inputs=[path for path in (fixed, *moving, *read) if str(path)])


def require_no_fold(path: str | Path, jacobian: dict[str, dict[str, float]], advice: str) -> None:
    """Refuse fields whose Jacobian determinant isn't positive everywhere.

    Args:
        path: of the moving image, for messages.
        jacobian: `jacobian_summary` of each field.
        advice: what to do, for messages.

    Raises:
        FoldingError: a determinant by either difference scheme is <= 0 or not finite.
    """
    # Not `<= 0`: this also catches NaN.
    if not all(one["min"] > 0 and one["corner_min"] > 0 for one in jacobian.values()):
        smallest = min(min(one["min"], one["corner_min"]) for one in jacobian.values())
        raise FoldingError(
            f"{path}: its field folds (smallest Jacobian determinant {smallest:.3g}); {advice}"
        )


def write_pair(
    folder: Path,
    name: str,
    fixed: ReadImage,
    moving: ReadImage,
    matrix: np.ndarray,
    fields: PairFields | None = None,
) -> np.ndarray:
    """Write affine files and fields in both directions, and each image on the other's grid.

    Each image is interpolated once.

    Args:
        folder: destination.
        name: of the pair.
        fixed: the fixed image.
        moving: the moving image.
        matrix: ``(4, 4)``, RAS mm, from fixed point to moving point.
        fields: displacements, applied before the matrix.

    Returns:
        The moving image on the fixed grid, ``(C, X, Y, Z)``.
    """
    d = fixed.spatial_dims
    to_moving: Transform = AffineTransform(matrix)
    to_fixed: Transform = ~to_moving
    write_affine_files(folder, name, "moving", "fixed", matrix, d)
    if fields is not None:
        moves = []
        for field, file in ((fields.forward, "forward"), (fields.inverse, "inverse")):
            voxels = field[0].cpu().numpy()
            voxels = voxels[..., None] if d == 2 else voxels
            write_field(folder / f"{name}_{file}_field.nii.gz", voxels, fixed.grid)
            world = np.tensordot(fixed.grid.affine[:3, :d], voxels, axes=([1], [0]))
            moves.append(FieldTransform(world, fixed.grid))
        to_moving, to_fixed = to_moving @ moves[0], moves[1] @ to_fixed
    moved = resample(moving.values, moving.grid, [to_moving], fixed.grid)
    write_map(folder / "moving_in_fixed.nii.gz", moved, fixed.grid)
    warped = resample(fixed.values, fixed.grid, [to_fixed], moving.grid)
    write_map(folder / "fixed_in_moving.nii.gz", warped, moving.grid)
    return moved
