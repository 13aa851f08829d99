"""Four affine transform models, as parameters and as world matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = [
    "FAMILIES",
    "Frame",
    "compose",
    "invert",
    "matrix_of",
    "parameter_count",
    "parameter_names",
    "parameters_of",
]

FAMILIES = ("rigid", "rigid_isotropic", "rigid_anisotropic", "affine")
"""From the fewest parameters to the most; each contains the ones before it.

``rigid``: rotations and translations; ``rigid_isotropic``: and one scale; ``rigid_anisotropic``:
and a scale along each axis; ``affine``: and shears.
"""

_SMALLEST_SINE = 1e-7  # below it two Euler axes coincide and only the sum of their angles counts
_FITS = 1e-6  # largest distance of a matrix from a model that it still belongs to


@dataclass(frozen=True, eq=False)
class Frame:
    """The axes, centre and size of a grid in the world, which give parameters their meaning.

    Rotations, scales and shears act about the centre, along orthonormal axes in millimetres. So a
    rigid transform is rigid whatever the shape, spacing or obliqueness of the grid, and an array
    with another voxel-to-world affine keeps its parameters.

    Attributes:
        axes: ``(3, 3)`` float64, orthonormal columns in RAS: the axes of the grid, or the nearest
            orthonormal ones if these are sheared. The third axis of a plane is its normal.
        centre: ``(3,)`` mm, RAS: the middle of the volume.
        half_width: ``(d,)`` mm: half the volume's extent along each axis, voxels x spacing / 2.
    """

    axes: torch.Tensor
    centre: torch.Tensor
    half_width: torch.Tensor

    @classmethod
    def of_grid(cls, affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> Frame:
        """The frame of a grid.

        Args:
            affine: ``(4, 4)``, voxel to RAS mm.
            shape: voxels along 2 or 3 axes.

        Raises:
            ValueError: the affine can't be inverted, or the shape doesn't have 2 or 3 axes.
        """
        matrix = np.asarray(affine, dtype=np.float64)
        d = len(shape)
        if d not in (2, 3):
            raise ValueError(f"a grid must have 2 or 3 axes, got {d}: shape {tuple(shape)}")
        columns = matrix[:3, :d]
        left, stretch, right = np.linalg.svd(columns, full_matrices=False)
        if not np.isfinite(matrix).all() or stretch[-1] <= 1e-9 * stretch[0]:
            raise ValueError("the grid's affine can't be inverted")
        axes = left @ right
        if d == 2:
            axes = np.column_stack([axes, np.cross(axes[:, 0], axes[:, 1])])
        middle = (np.array(shape) - 1) / 2
        spacing = np.linalg.norm(columns, axis=0)
        return cls(
            torch.from_numpy(axes),
            torch.from_numpy(columns @ middle + matrix[:3, 3]),
            torch.from_numpy(np.array(shape) * spacing / 2),
        )

    @property
    def spatial_dims(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return len(self.half_width)

    def to(self, device: torch.device | str) -> Frame:
        """The same frame on another device."""
        return Frame(self.axes.to(device), self.centre.to(device), self.half_width.to(device))

    @property
    def world(self) -> torch.Tensor:
        """``(4, 4)``: from millimetres along the axes from the centre to RAS."""
        matrix = torch.eye(4, dtype=torch.float64, device=self.axes.device)
        matrix[:3, :3] = self.axes
        matrix[:3, 3] = self.centre
        return matrix


def parameter_names(family: str, spatial_dims: int = 3) -> tuple[str, ...]:
    """Names of the parameters, in order: rotations, translations, scales, shears.

    The parameters of each model begin with those of a rigid transform.

    Raises:
        ValueError: unknown transform model, or not 2 or 3 dimensions.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    axes = "xyz"[:spatial_dims]
    names = [f"rotation_{axis}" for axis in ("xyz" if spatial_dims == 3 else "z")]
    names += [f"translation_{axis}" for axis in axes]
    if family == "rigid_isotropic":
        names.append("scale")
    elif family != "rigid":
        names += [f"scale_{axis}" for axis in axes]
    if family == "affine":
        names += [f"shear_{a}{b}" for a, b in ("xy", "xz", "yz") if b in axes]
    return tuple(names)


def parameter_count(family: str, spatial_dims: int = 3) -> int:
    """Number of parameters of a transform model (3-D: 6, 7, 9, 12; 2-D: 3, 4, 5, 6)."""
    return len(parameter_names(family, spatial_dims))


def matrix_of(parameters: torch.Tensor, family: str, frame: Frame) -> torch.Tensor:
    """World matrices from parameters; differentiable, zeros give the identity.

    In coordinates q along the axes of the frame, in mm from its centre, a point is first scaled,
    then sheared, rotated about x, y and z in this order, and translated:

        q' = Rz Ry Rx H S q + t

    with S = diag(1 + scales), H unit upper triangular with the shears, rotations in radians, and
    t = translations * half_width. Angles turn the first axis towards the second, and so on
    cyclically.

    Args:
        parameters: ``(B, P)``, see `parameter_names`.
        family: transform model, one of `FAMILIES`.
        frame: of the fixed grid.

    Returns:
        ``(B, 4, 4)`` float64.

    Raises:
        ValueError: wrong number of parameters.
    """
    d = frame.spatial_dims
    wanted = parameter_count(family, d)
    if parameters.ndim != 2 or parameters.shape[1] != wanted:
        raise ValueError(
            f"a {family} transform in {d}-D must have parameters (B, {wanted}), "
            f"got {tuple(parameters.shape)}"
        )
    values = parameters.to(torch.float64)
    turns = 3 if d == 3 else 1
    rotations, rest = values[:, :turns], values[:, turns:]
    translations, rest = rest[:, :d], rest[:, d:]
    scales = rest[:, : (1 if family == "rigid_isotropic" else d)]
    shears = rest[:, d:]

    linear = _rotation(rotations, d)
    if family == "affine":
        linear = linear @ _shear(shears, d)
    if family != "rigid":
        linear = linear * (1 + scales)[:, None]
    world = frame.to(values.device).world
    local = _homogeneous(linear, translations * frame.half_width.to(values.device))
    return world @ local @ _inverse_of_rigid(world)


def parameters_of(matrix: torch.Tensor, family: str, frame: Frame) -> torch.Tensor:
    """The parameters for which `matrix_of` gives ``matrix``.

    Rotations about x and z are in (-180, 180] degrees, about y in [-90, 90]. The result may differ
    from the parameters that made a matrix, but gives the same matrix. At 90 degrees about y only
    the sum of the other two angles matters; the one about x is then 0.

    Args:
        matrix: ``(B, 4, 4)``, world mm.
        family: transform model, one of `FAMILIES`.
        frame: the fixed grid's.

    Returns:
        ``(B, P)`` float64.

    Raises:
        ValueError: a matrix isn't finite, has a determinant <= 0, isn't affine, or isn't in the
            transform model (it differs by more than 1e-6).
    """
    names = parameter_names(family, frame.spatial_dims)
    d = frame.spatial_dims
    values = matrix.to(torch.float64)
    world = frame.to(values.device).world
    local = _inverse_of_rigid(world) @ values @ world
    linear = local[:, :d, :d]
    unmoved = torch.eye(4, dtype=torch.float64, device=values.device)[d:]
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a matrix isn't finite")
    if bool((local[:, d:] - unmoved).abs().max() > _FITS * 10):
        raise ValueError(f"a matrix isn't an affine transform in the {d} axes of the frame")
    if bool((torch.linalg.det(linear) <= 0).any()):
        raise ValueError("a matrix mirrors or collapses space: no transform model contains it")

    rotation, upper = torch.linalg.qr(linear)
    signs = torch.sign(torch.diagonal(upper, dim1=1, dim2=2))
    rotation, upper = rotation * signs[:, None], upper * signs[:, :, None]
    sizes = torch.diagonal(upper, dim1=1, dim2=2)
    shears = upper / sizes[:, None]
    pieces = [_angles(rotation), local[:, :d, 3] / frame.half_width.to(values.device)]
    if family == "rigid_isotropic":
        pieces.append(sizes.mean(dim=1, keepdim=True) - 1)
    elif family != "rigid":
        pieces.append(sizes - 1)
    if family == "affine":
        pieces.append(torch.stack([shears[:, i, j] for i, j in _above(d)], dim=1))
    parameters = torch.cat(pieces, dim=1)
    apart = (matrix_of(parameters, family, frame) - values)[:, :3, :3].abs().amax()
    if bool(apart > _FITS):
        raise ValueError(
            f"a matrix isn't in the transform model {family} ({len(names)} parameters): its linear "
            f"part differs by {float(apart):.3g}"
        )
    return parameters


def compose(*matrices: torch.Tensor) -> torch.Tensor:
    """Compose point maps; the FIRST one is applied first: ``(last) ... (first)``.

    The same order as `scripts.spatial.transforms.resample` and antsApplyTransforms' ``-t`` options.

    Args:
        matrices: ``(B, 4, 4)`` or ``(4, 4)``, at least one.
    """
    product = matrices[0]
    for matrix in matrices[1:]:
        product = matrix @ product
    return product


def invert(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse maps, ``(..., 4, 4)``.

    Raises:
        ValueError: a matrix isn't finite or can't be inverted.
    """
    linear = matrix[..., :3, :3]
    sizes = torch.linalg.svdvals(linear.detach().to(torch.float64))
    if not bool(torch.isfinite(matrix).all()) or bool((sizes[..., -1] <= 1e-9).any()):
        raise ValueError("a matrix can't be inverted: it collapses space or isn't finite")
    return torch.linalg.inv(matrix)


# ---------------------------------------------------------------------------------------------
# Pieces
# ---------------------------------------------------------------------------------------------


def _above(d: int) -> list[tuple[int, int]]:
    """Index pairs above the diagonal, in the order of the shears."""
    return [(i, j) for i in range(d) for j in range(i + 1, d)]


def _rotation(angles: torch.Tensor, d: int) -> torch.Tensor:
    """``(B, 1)`` or ``(B, 3)`` radians to ``(B, d, d)``: about x first, then y, then z."""
    c, s = torch.cos(angles), torch.sin(angles)
    if d == 2:
        return torch.stack([c, -s, s, c], dim=1).reshape(-1, 2, 2)
    zero, one = torch.zeros_like(c[:, 0]), torch.ones_like(c[:, 0])

    def rows(*entries: torch.Tensor) -> torch.Tensor:
        return torch.stack(entries, dim=1).reshape(-1, 3, 3)

    about_x = rows(one, zero, zero, zero, c[:, 0], -s[:, 0], zero, s[:, 0], c[:, 0])
    about_y = rows(c[:, 1], zero, s[:, 1], zero, one, zero, -s[:, 1], zero, c[:, 1])
    about_z = rows(c[:, 2], -s[:, 2], zero, s[:, 2], c[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x


def _angles(rotation: torch.Tensor) -> torch.Tensor:
    """Inverse of `_rotation`: angles from matrices."""
    if rotation.shape[-1] == 2:
        return torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])[:, None]
    sine = (-rotation[:, 2, 0]).clamp(-1, 1)
    level = torch.hypot(rotation[:, 0, 0], rotation[:, 1, 0])
    locked = level < _SMALLEST_SINE
    about_x = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    about_z = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    alone = torch.atan2(-rotation[:, 0, 1], rotation[:, 1, 1])
    return torch.stack(
        [
            torch.where(locked, torch.zeros_like(about_x), about_x),
            torch.atan2(sine, level),
            torch.where(locked, alone, about_z),
        ],
        dim=1,
    )


def _shear(shears: torch.Tensor, d: int) -> torch.Tensor:
    rows = []
    column = {pair: k for k, pair in enumerate(_above(d))}
    one, zero = torch.ones_like(shears[:, 0]), torch.zeros_like(shears[:, 0])
    for i in range(d):
        for j in range(d):
            rows.append(shears[:, column[i, j]] if i < j else one if i == j else zero)
    return torch.stack(rows, dim=1).reshape(-1, d, d)


def _homogeneous(linear: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """``(B, d, d)`` and ``(B, d)`` to ``(B, 4, 4)``; the third axis of a plane is unchanged."""
    d = linear.shape[-1]
    whole = torch.eye(4, dtype=linear.dtype, device=linear.device).repeat(len(linear), 1, 1)
    whole[:, :d, :d] = linear
    whole[:, :d, 3] = translation
    return whole


def _inverse_of_rigid(matrix: torch.Tensor) -> torch.Tensor:
    """Inverse of a matrix with an orthonormal linear part, exact to rounding."""
    back = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    back[:3, :3] = matrix[:3, :3].T
    back[:3, 3] = -(matrix[:3, :3].T @ matrix[:3, 3])
    return back
