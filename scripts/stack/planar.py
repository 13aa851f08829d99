"""Transforms of a plane about its centre, in physical units, as few numbers and as matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["TRANSFORMATIONS", "PlanarModel", "Plane", "corner_distance"]

TRANSFORMATIONS = ("rigid", "similarity", "affine")

_TURN, _X, _Y, _SCALE_X, _SCALE_Y, _SHEAR = range(6)


@dataclass(frozen=True)
class Plane:
    """The pixels of a section and their positions.

    A physical point is ``(x, y)``: x along the columns, y along the rows, from the centre of the
    section, in the unit of the spacing. Rotations in it are rotations, for any shape and
    spacing.

    Attributes:
        shape: rows and columns.
        spacing: distance of rows and of columns.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]

    @cached_property
    def half_width(self) -> np.ndarray:
        """``(2,)``: half the extent along x and y."""
        rows, columns = self.shape
        return np.array([columns * self.spacing[1] / 2, rows * self.spacing[0] / 2])

    @cached_property
    def to_physical(self) -> np.ndarray:
        """``(3, 3)``: ``(row, column, 1)`` to ``(x, y, 1)``."""
        (rows, columns), (sy, sx) = self.shape, self.spacing
        return np.array(
            [[0.0, sx, -sx * (columns - 1) / 2], [sy, 0.0, -sy * (rows - 1) / 2], [0.0, 0.0, 1.0]]
        )

    @cached_property
    def to_pixels(self) -> np.ndarray:
        """``(3, 3)``: ``(x, y, 1)`` to ``(row, column, 1)``."""
        (rows, columns), (sy, sx) = self.shape, self.spacing
        return np.array(
            [[0.0, 1 / sy, (rows - 1) / 2], [1 / sx, 0.0, (columns - 1) / 2], [0.0, 0.0, 1.0]]
        )

    @cached_property
    def five_points(self) -> np.ndarray:
        """``(3, 5)``: the corners and the centre, physical and homogeneous."""
        hx, hy = self.half_width
        return np.array([[-hx, hx, -hx, hx, 0.0], [-hy, -hy, hy, hy, 0.0], [1.0] * 5])

    @property
    def pixel(self) -> float:
        """Mean distance of pixels: what a length is divided by to give it in pixels."""
        return float(np.sqrt(self.spacing[0] * self.spacing[1]))

    def pixel_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """A physical map as a map of ``(row, column, 1)``; the identity stays exactly that."""
        if np.array_equal(matrix, np.eye(3)):
            return np.eye(3)
        result = self.to_pixels @ matrix @ self.to_physical
        result[2] = (0.0, 0.0, 1.0)
        return result

    def physical_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """A map of ``(row, column, 1)`` as a physical one."""
        if np.array_equal(matrix, np.eye(3)):
            return np.eye(3)
        result = self.to_physical @ matrix @ self.to_pixels
        result[2] = (0.0, 0.0, 1.0)
        return result


def corner_distance(first: np.ndarray, second: np.ndarray, plane: Plane) -> float:
    """Largest distance, in pixels, that two maps put between the images of the five points."""
    apart = ((first - second) @ plane.five_points)[:2]
    return float(np.sqrt((apart**2).sum(0).max())) / plane.pixel


class PlanarModel:
    """A family of maps with its parameters, those of `scripts.spatial.affine_parameters` in 2-D.

    A point is scaled, sheared, rotated and moved, all about the centre:

        q' = R [[1, h], [0, 1]] diag(1 + s_x, 1 + s_y) q + t * half_width

    Args:
        transformation: rigid; similarity, with one scale; affine, with two scales and a shear.
        scaling: False keeps an affine transform's scales at 1.
        shear: False keeps its shear at 0.

    Example:
        >>> PlanarModel("rigid").names
        ('rotation', 'translation_x', 'translation_y')
        >>> plane = Plane((100, 200), (1.0, 1.0))
        >>> PlanarModel("rigid").matrix(np.array([0.0, 0.1, 0.0]), plane)[0, 2]
        np.float64(10.0)
    """

    def __init__(self, transformation: str, scaling: bool = True, shear: bool = True) -> None:
        if transformation not in TRANSFORMATIONS:
            raise ValueError(
                f"transformation must be one of {', '.join(TRANSFORMATIONS)}, got "
                f"{transformation!r}"
            )
        columns = {"rotation": [_TURN], "translation_x": [_X], "translation_y": [_Y]}
        if transformation == "similarity":
            columns["scale"] = [_SCALE_X, _SCALE_Y]
        elif transformation == "affine":
            if scaling:
                columns |= {"scale_x": [_SCALE_X], "scale_y": [_SCALE_Y]}
            if shear:
                columns["shear"] = [_SHEAR]
        self.names = tuple(columns)
        self.spread = np.zeros((6, len(columns)))
        """``(6, P)``: from the parameters to all six numbers; the others stay 0."""
        for column, places in enumerate(columns.values()):
            self.spread[places, column] = 1.0

    @property
    def count(self) -> int:
        """How many numbers a transform has."""
        return len(self.names)

    @property
    def has_scale(self) -> bool:
        """Whether a transform scales."""
        return bool(self.spread[_SCALE_X].any())

    def matrix(self, parameters: np.ndarray, plane: Plane) -> np.ndarray:
        """``(3, 3)``, physical; zeros give the identity."""
        turn, x, y, scale_x, scale_y, shear = (self.spread @ parameters).tolist()
        c, s = math.cos(turn), math.sin(turn)
        hx, hy = plane.half_width.tolist()
        a, b = 1 + scale_x, 1 + scale_y
        return np.array(
            [[c * a, (c * shear - s) * b, x * hx], [s * a, (s * shear + c) * b, y * hy], [0, 0, 1]]
        )

    def derivative(self, parameters: np.ndarray, plane: Plane) -> np.ndarray:
        """``(P, 2, 3)``: derivatives of the matrix's upper rows by each parameter."""
        turn, _, _, scale_x, scale_y, shear = (self.spread @ parameters).tolist()
        c, s = math.cos(turn), math.sin(turn)
        hx, hy = plane.half_width.tolist()
        a, b = 1 + scale_x, 1 + scale_y
        over, under = c * shear - s, s * shear + c
        by_six = np.array(
            [
                [-s * a, -under * b, 0, c * a, over * b, 0],
                [0, 0, hx, 0, 0, 0],
                [0, 0, 0, 0, 0, hy],
                [c, 0, 0, s, 0, 0],
                [0, over, 0, 0, under, 0],
                [0, c * b, 0, 0, s * b, 0],
            ]
        )
        return (self.spread.T @ by_six).reshape(-1, 2, 3)

    def penalty(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Squared deviations of scales and shear, with their gradient and Hessian."""
        deviations = self.spread[_SCALE_X:]
        values = deviations @ parameters
        return (
            float(values @ values), 2 * deviations.T @ values, 2 * deviations.T @ deviations,
        )  # fmt: skip

    def parameters(self, matrix: np.ndarray, plane: Plane) -> np.ndarray:
        """The parameters of a map, or of the family's one that is near to it.

        Of a map outside of the family, a rigid one takes the nearest rotation, and others drop
        what they lack.

        Raises:
            ValueError: the map mirrors or collapses the plane, or isn't finite.
        """
        linear = matrix[:2, :2]
        determinant = float(np.linalg.det(linear)) if np.isfinite(matrix).all() else -1.0
        if determinant <= 0:
            raise ValueError("the transform mirrors or collapses the plane, or is not finite")
        six = np.zeros(6)
        if _SHEAR in np.flatnonzero(self.spread.any(1)) or "scale_x" in self.names:
            six[_TURN] = np.arctan2(linear[1, 0], linear[0, 0])
        else:
            six[_TURN] = np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
        c, s = np.cos(six[_TURN]), np.sin(six[_TURN])
        upper = np.array([[c, s], [-s, c]]) @ linear
        if "scale" in self.names:
            six[_SCALE_X] = six[_SCALE_Y] = np.sqrt(determinant) - 1
        else:
            six[_SCALE_X], six[_SCALE_Y] = upper[0, 0] - 1, upper[1, 1] - 1
        six[_SHEAR] = upper[0, 1] / upper[1, 1]
        six[_X:_SCALE_X] = matrix[:2, 2] / plane.half_width
        return np.linalg.lstsq(self.spread, six * self.spread.any(1), rcond=None)[0]
