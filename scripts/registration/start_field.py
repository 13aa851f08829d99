"""A field that a deformable registration starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.errors import CohortError
from scripts.networks.integration import VelocityIntegration, invert_displacement
from scripts.registration.images import ReadImage, WorldImage
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.overlap import fields_apart
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.warp import warp

__all__ = ["StartField", "advice_if_folded", "read_start_field", "vectors_on_grid"]

_INT_STEPS = 7


@dataclass(frozen=True, eq=False)
class StartField:
    """Both displacements of a map, ``(1, d, *shape)`` in voxels of one grid.

    Attributes:
        forward: a fixed point x goes to ``x + forward(x)``, before the matrix.
        inverse: of the inverse map.
        velocity: stationary, whose flows they are; None if it isn't known.
    """

    forward: torch.Tensor
    inverse: torch.Tensor
    velocity: torch.Tensor | None = None

    def on(self, source: WorldImage, wanted: WorldImage) -> StartField:
        """The same map on another grid with the same axes."""
        velocity = self.velocity
        return StartField(
            vectors_on_grid(self.forward, source, wanted),
            vectors_on_grid(self.inverse, source, wanted),
            None if velocity is None else vectors_on_grid(velocity, source, wanted),
        )

    def to(self, device: torch.device) -> StartField:
        """The same map on another device."""
        velocity = self.velocity
        return StartField(
            self.forward.to(device),
            self.inverse.to(device),
            None if velocity is None else velocity.to(device),
        )

    def after(self, displacement: torch.Tensor) -> torch.Tensor:
        """The displacement of a map that is followed by this one: ``u(x) + s(x + u(x))``."""
        return displacement + warp(self.forward, displacement, padding_mode="border")

    def inverse_before(self, inverse: torch.Tensor) -> torch.Tensor:
        """The inverse displacement of `after`, from the other map's inverse."""
        return self.inverse + warp(inverse, self.inverse, padding_mode="border")


def advice_if_folded(
    field: StartField | None, setting: str, path: str | None, otherwise: str
) -> str:
    """What to do about a result that folds: it is the start's fault if that folds already.

    Args:
        field: the start; None: there is none.
        setting: that names its file.
        path: the file.
        otherwise: the advice where the start doesn't fold.
    """
    if field is None or field.velocity is not None:
        return otherwise
    summary = jacobian_summary(field.forward[0])
    smallest = min(summary["min"], summary["corner_min"])
    if smallest > 0:
        return otherwise
    return (
        f"its start {setting} = {path!r} folds already ({smallest:.3g}): give a field that doesn't "
        "fold, and that covers the fixed image or fades to 0 before its grid ends, because outside "
        "of its grid a field is 0"
    )


def vectors_on_grid(
    vectors: torch.Tensor | None, source: WorldImage | None, wanted: WorldImage
) -> torch.Tensor:
    """Convert vectors in voxels of one grid to voxels of another with the same axes."""
    d = len(wanted.shape)
    if vectors is None or source is None:
        return wanted.values.new_zeros(1, d, *wanted.shape)
    still = torch.eye(4, dtype=torch.float64, device=vectors.device)
    result = resample_by_matrix(
        vectors, source.affine, still, wanted.affine, wanted.shape, padding_mode="border"
    )
    ratio = torch.as_tensor(source.spacing / wanted.spacing).to(result)
    return result * ratio.view(1, d, *[1] * d)


def read_start_field(path: str | Path, kind: str, fixed: ReadImage) -> StartField:
    """A field file as a start on the fixed image's grid.

    Args:
        path: a field as ITK and ANTs write them, on any grid.
        kind: ``displacement``, or ``velocity``: the flow of the stationary vectors is meant.
        fixed: whose points it moves.

    Raises:
        CohortError: the file can't be read, is not a field, or lies elsewhere.
    """
    file = TransformFile(Path(path))
    if not file.is_field:
        raise CohortError(
            f"{path}: no displacement field; must be .nii or .nii.gz as ITK and ANTs write them"
        )
    read = read_transform(file)
    if fields_apart([read], fixed.grid):
        raise CohortError(
            f"{path}: no point of {fixed.path} lies in its grid; is it the field of this image, "
            "in the direction from fixed to moving?"
        )
    d, shape = fixed.spatial_dims, fixed.grid.shape
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).reshape(3, -1)
    linear = fixed.grid.affine[:3, :3]
    points = linear @ index + fixed.grid.affine[:3, 3:]
    moves = np.linalg.solve(linear, read.apply(points) - points)[:d]
    device = fixed.image.values.device
    vectors = torch.from_numpy(moves.reshape(d, *shape[:d])).float()[None].to(device)
    if kind == "velocity":
        return StartField(*VelocityIntegration(_INT_STEPS).both(vectors, shape[:d]), vectors)
    return StartField(vectors, invert_displacement(vectors))
