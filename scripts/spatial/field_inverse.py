"""The inverse of a displacement field at given points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.errors import CohortError
from scripts.spatial.transforms import FieldTransform, Transform

__all__ = ["InverseFieldTransform"]

_TOLERANCE = 1e-3  # mm
_FIXED_POINT, _NEWTON = 40, 20  # iterations
_STEP = 0.05  # voxels between the points of a finite difference
_LARGEST_SHARE = 1e-4  # of points that may stay unsolved where the field isn't invertible


@dataclass(frozen=True, eq=False)
class InverseFieldTransform(Transform):
    """``x`` with ``x + u(x) = y``, solved point by point.

    Fixed-point iteration solves nearly all points. Newton's method, with derivatives from finite
    differences, solves those where the field changes too fast for it.

    Example:
        >>> import nibabel
        >>> from scripts.spatial.grid import Grid
        >>> grid = Grid((4, 4, 4), np.eye(4), nibabel.Nifti1Header())
        >>> field = FieldTransform(np.full((3, 4, 4, 4), 0.5), grid)
        >>> InverseFieldTransform(field).apply(np.array([[1.5], [1.5], [1.5]]))[:, 0].round(6)
        array([1., 1., 1.])

    Attributes:
        field: maps x to x + u(x), RAS mm.
    """

    field: FieldTransform

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points whose images under the field are ``points``; ``(3, N)``, RAS mm.

        Raises:
            CohortError: too many points have no solution: the field folds there.
        """
        result = points.astype(np.float64)
        left = np.arange(points.shape[1])
        for _ in range(_FIXED_POINT):
            error = points[:, left] - self.field.apply(result[:, left])
            result[:, left] += error
            left = left[np.abs(error).max(axis=0, initial=0.0) > _TOLERANCE]
            if not len(left):
                return result
        left = self._newton(points, result, left)
        if len(left) > max(1, _LARGEST_SHARE * points.shape[1]):
            raise CohortError(
                f"a displacement field can't be inverted at {len(left)} of {points.shape[1]} "
                "points: it folds there, or they are at its rim, where it ends with a jump; give "
                "the field of the opposite direction"
            )
        return result

    def __invert__(self) -> FieldTransform:
        """The field itself."""
        return self.field

    def _newton(self, points: np.ndarray, solution: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Improve the points ``left`` of ``solution`` in place; return those still unsolved."""
        step = _STEP * float(np.linalg.norm(self.field.grid.affine[:3, :3], axis=0).min())
        for _ in range(_NEWTON):
            here = solution[:, left]
            error = points[:, left] - self.field.apply(here)
            derivative = np.empty((len(left), 3, 3))
            for axis in range(3):
                moved = np.zeros((3, 1))
                moved[axis] = step
                difference = self.field.apply(here + moved) - self.field.apply(here - moved)
                derivative[:, :, axis] = difference.T / (2 * step)
            # The pseudoinverse stays finite where the field is flat.
            solution[:, left] += np.einsum("nij,jn->in", np.linalg.pinv(derivative), error)
            rest = points[:, left] - self.field.apply(solution[:, left])
            left = left[~(np.abs(rest).max(axis=0, initial=0.0) <= _TOLERANCE)]
            if not len(left):
                break
        return left
