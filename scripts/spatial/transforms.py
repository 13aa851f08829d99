"""Maps of points, which are composed and then applied to images once.

Every transform maps POINTS of the wanted image to points of the image that is resampled, in world
millimetres, RAS. Files use ITK's world, LPS: x and y are negated.

    (a @ b).apply(x) == a.apply(b.apply(x))     # b comes first
    (~a).apply(a.apply(x)) == x
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from scripts.spatial.grid import Grid

__all__ = [
    "AffineTransform",
    "ComposedTransform",
    "FieldTransform",
    "Transform",
    "places_of",
    "resample",
    "take_nearest",
]

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the inverse of itself
NO_INVERSE = (
    "a displacement field can't be inverted here; give the field of the opposite direction (ANTs "
    "writes it as ...InverseWarp.nii.gz)"
)
_SLAB = 16  # slices of the wanted grid that are processed at once


class Transform(ABC):
    """A map of points, in RAS mm."""

    __array_ufunc__ = None  # transform @ array is a mistake; NumPy must not sum over objects

    @abstractmethod
    def apply(self, points: np.ndarray) -> np.ndarray:
        """Apply the map to points ``(3, N)``; RAS mm."""

    @abstractmethod
    def __invert__(self) -> Transform:
        """The inverse map: ``(~a).apply(a.apply(x))`` is ``x``."""

    def __matmul__(self, other: Transform) -> Transform:
        """``(a @ b).apply(x)`` is ``a.apply(b.apply(x))``: the right one is applied first."""
        if not isinstance(other, Transform):
            return NotImplemented
        return ComposedTransform(self, other)


@dataclass(frozen=True, eq=False)
class AffineTransform(Transform):
    """``y = A x``.

    Example:
        >>> shift, double = AffineTransform(np.eye(4)), AffineTransform(np.diag([2.0, 2, 2, 1]))
        >>> shift.matrix[:3, 3] = 1, 0, 0
        >>> point = np.array([[1.0], [2.0], [3.0]])
        >>> (double @ shift).apply(point)[:, 0]
        array([4., 4., 6.])
        >>> (~shift @ shift).apply(point)[:, 0]
        array([1., 2., 3.])

    Attributes:
        matrix: ``(4, 4)``, RAS mm to RAS mm.
    """

    matrix: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Apply the map to points ``(3, N)``; RAS mm."""
        return self.matrix[:3, :3] @ points + self.matrix[:3, 3:]

    def __invert__(self) -> AffineTransform:
        """The inverse map.

        Raises:
            numpy.linalg.LinAlgError: the matrix is singular.
        """
        return AffineTransform(np.linalg.inv(self.matrix))

    def __matmul__(self, other: Transform) -> Transform:
        """See `Transform`; two affines give one affine."""
        if isinstance(other, AffineTransform):
            return AffineTransform(self.matrix @ other.matrix)
        return super().__matmul__(other)


@dataclass(frozen=True, eq=False)
class FieldTransform(Transform):
    """``y = x + u(x)``, u interpolated linearly between voxels, 0 outside the field as in ITK.

    The border value continues for half a voxel beyond the outermost centres; then comes the
    outside.

    Example:
        >>> import nibabel
        >>> grid = Grid((4, 4, 4), np.eye(4), nibabel.Nifti1Header())
        >>> field = FieldTransform(np.full((3, 4, 4, 4), 0.5), grid)
        >>> field.apply(np.array([[1.0, 9.0], [1.0, 9.0], [1.0, 9.0]]))[0]
        array([1.5, 9. ])

    Attributes:
        displacement: ``(3, X, Y, Z)``, RAS mm.
        grid: of the voxels.
    """

    displacement: np.ndarray
    grid: Grid

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Apply the map to points ``(3, N)``; RAS mm."""
        voxels = (~AffineTransform(self.grid.affine)).apply(points)
        ends = np.array(self.grid.shape)[:, None] - 0.5
        inside = ((voxels >= -0.5) & (voxels <= ends)).all(axis=0)
        moves = [
            map_coordinates(component, voxels, order=1, mode="nearest")
            for component in self.displacement
        ]
        return points + np.where(inside, moves, 0.0)

    def __invert__(self) -> Transform:
        """Not available.

        Raises:
            ValueError: always; the message names the alternative.
        """
        raise ValueError(NO_INVERSE)


@dataclass(frozen=True, eq=False)
class ComposedTransform(Transform):
    """``y = outer(inner(x))``, the result of `@` if no single matrix can represent it.

    Attributes:
        outer: applied second.
        inner: applied first.
    """

    outer: Transform
    inner: Transform

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Apply the map to points ``(3, N)``; RAS mm."""
        return self.outer.apply(self.inner.apply(points))

    def __invert__(self) -> Transform:
        """The composition of the inverses in reverse order.

        Raises:
            ValueError: one of them is a field.
        """
        return ~self.inner @ ~self.outer


def resample(
    volume: np.ndarray,
    source: Grid,
    transforms: Sequence[Transform],
    wanted: Grid,
    order: int = 1,
) -> np.ndarray:
    """Resample an image to another grid through a chain of transforms, interpolating once.

    A point of the wanted grid passes through the transforms in their order, the first one first,
    and the image is read where it arrives; ``antsApplyTransforms -r wanted -i image -t first -t
    second`` means the same. 0 outside of the image. A plane is read where a point's first two
    coordinates fall.

    Any transforms, in float64; labels of any type, and a half goes up as in ITK. PyTorch's
    ``grid_sample`` takes as long and gives the same values linearly, but reads no integers and
    rounds a half to the even voxel. For matrices in batches, with gradients or on a GPU there is
    `resample_by_matrix`.

    Args:
        volume: ``(C, X, Y, Z)``, or a plane ``(C, X, Y)``.
        source: grid of the volume.
        transforms: in the order of ``-t`` options; empty: the identity.
        wanted: grid of the result.
        order: 1 interpolates linearly, 0 takes the nearest voxel, for labels.

    Returns:
        ``(C, *wanted.shape)``, of a volume always ``(C, X, Y, Z)``; float32, or with order 0 in the
        type of the volume: values are copied, not computed, so that labels stay exact.
    """
    x, y, z = (*wanted.shape, 1)[:3]
    d = volume.ndim - 1
    result = np.empty((len(volume), x, y, z), dtype=np.float32 if order else volume.dtype)
    for start, stop, places in _slabs(wanted, transforms, source):
        voxels = places[:d]
        if order == 0:
            result[:, start:stop] = take_nearest(volume, voxels).reshape(-1, stop - start, y, z)
            continue
        for channel, values in zip(result, volume, strict=True):
            # grid-constant fades over the last voxel, as the network's warp does.
            sampled = map_coordinates(values, voxels, order=order, mode="grid-constant")
            channel[start:stop] = sampled.reshape(stop - start, y, z)
    return result.reshape(len(volume), *(x, y, z)[:d])


def places_of(wanted: Grid, transforms: Sequence[Transform], source: Grid) -> np.ndarray:
    """Where the voxels of one grid lie in another one, through a chain of transforms.

    Args:
        wanted: the grid of the voxels; a plane has Z = 1.
        transforms: see `resample`.
        source: the other grid.

    Returns:
        ``(3, *wanted.shape)``, voxels of ``source``, float64.
    """
    x, y, z = (*wanted.shape, 1)[:3]
    result = np.empty((3, x, y, z))
    for start, stop, places in _slabs(wanted, transforms, source):
        result[:, start:stop] = places.reshape(3, stop - start, y, z)
    return result


def _slabs(
    wanted: Grid, transforms: Sequence[Transform], source: Grid
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Start and stop of each slab of a grid, and where its voxels lie in another, ``(3, N)``."""
    x, y, z = (*wanted.shape, 1)[:3]
    to_world, to_voxels = AffineTransform(wanted.affine), ~AffineTransform(source.affine)
    for start in range(0, x, _SLAB):
        stop = min(start + _SLAB, x)
        points = to_world.apply(np.mgrid[start:stop, :y, :z].reshape(3, -1))
        for transform in transforms:
            points = transform.apply(points)
        yield start, stop, to_voxels.apply(points)


def take_nearest(volume: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Values of the nearest voxels, in the type of the volume; 0 outside.

    Args:
        volume: ``(C, *shape)``.
        voxels: ``(d, N)``, indices with fractions; a half goes up, as in ITK.

    Returns:
        ``(C, N)``.
    """
    shape = np.array(volume.shape[1:])[:, None]
    with np.errstate(invalid="ignore"):  # what isn't finite is outside
        nearest = np.floor(voxels + 0.5)
        inside = ((nearest >= 0) & (nearest < shape)).all(axis=0)
    result = np.zeros((len(volume), voxels.shape[1]), dtype=volume.dtype)
    index = tuple(nearest[:, inside].astype(np.int64))
    result[:, inside] = volume[(slice(None), *index)]
    return result
