"""A deformable registration as arrays: an affine matrix and a displacement in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Deformation"]


@dataclass(frozen=True, eq=False)
class Deformation:
    """A fixed point x corresponds to ``matrix (x + displacement(x))`` in the moving image.

    Attributes:
        matrix: ``(4, 4)``, from fixed point to moving point, RAS mm.
        displacement: ``(3, X, Y, Z)`` RAS mm on the fixed grid; Z = 1 for a plane.
        inverse: ``(3, X, Y, Z)`` RAS mm on the fixed grid: a moving point y corresponds to
            ``z + inverse(z)`` with ``z = matrix^-1 y``.
        affine: ``(4, 4)`` of the fixed grid.
        smallest_jacobian: smallest Jacobian determinant of both displacements; > 0 means that
            nothing folds.
    """

    matrix: np.ndarray
    displacement: np.ndarray
    inverse: np.ndarray
    affine: np.ndarray
    smallest_jacobian: float
