"""The largest rectangle that every section fills, from the transforms alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.errors import CohortError

__all__ = ["CropBox", "crop_box"]

_SLACK = 1e-6  # pixels: a section that fills a pixel but for rounding fills it


@dataclass(frozen=True)
class CropBox:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.bottom - self.top, self.right - self.left)


def crop_box(
    matrices: np.ndarray,
    shape: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]],
    margin: int,
    describe: Sequence[str],
) -> CropBox:
    """The largest rectangle of pixels of the registered grid that all sections fill.

    A section fills a pixel whose position in it is between the centres of its outermost pixels:
    nothing is extrapolated. What all of them fill is convex. In a row it is an interval, whose
    ends are a convex and a concave function of the row, so that a rectangle fits if it fits in its
    first and in its last row; all pairs of rows are tried.

    Args:
        matrices: ``(sections, 3, 3)``, ``(row, column, 1)`` of the registered grid to a pixel of
            the section.
        shape: of the registered grid.
        boxes: rows and columns of the canvas that each section fills.
        margin: pixels taken off at each side.
        describe: what messages call the sections.

    Raises:
        CohortError: there is no such rectangle; the message names the sections that prevent it.
    """
    rows = np.arange(shape[0], dtype=np.float64)
    left, right = np.zeros(shape[0]), np.full(shape[0], shape[1] - 1.0)
    for matrix, box in zip(matrices, boxes, strict=True):
        low, high = _interval(matrix, box, rows)
        left, right = np.maximum(left, low), np.minimum(right, high)
    left, right = np.ceil(left - _SLACK), np.floor(right + _SLACK)
    best = (0.0, 0, 0)
    for top in np.flatnonzero(right >= left):
        width = np.minimum(right[top:], right[top]) - np.maximum(left[top:], left[top]) + 1
        area = np.maximum(width, 0) * np.arange(1, len(width) + 1)
        bottom = int(area.argmax())
        if area[bottom] > best[0]:
            best = (float(area[bottom]), int(top), int(top) + bottom)
    area, first, last = best
    result = CropBox(0, 0, 0, 0)
    if area > 0:
        result = CropBox(
            first + margin, last + 1 - margin,
            int(max(left[first], left[last])) + margin,
            int(min(right[first], right[last])) + 1 - margin,
        )  # fmt: skip
    if min(result.shape) < 1:
        raise CohortError(
            "cropping leaves nothing: there is no rectangle that all sections fill"
            f"{f' less the margin of {margin} pixels' if area > 0 else ''}; "
            f"{_at_fault(matrices, shape, boxes, describe)}; skip these sections, or turn "
            "crop_borders off"
        )
    return result


def _interval(
    matrix: np.ndarray, box: tuple[int, int, int, int], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest column in each row that a section fills; least > largest: none."""
    low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    for line, first, end in ((matrix[0], box[0], box[1]), (matrix[1], box[2], box[3])):
        slope, start = line[1], line[0] * rows + line[2]
        if abs(slope) < 1e-12:
            outside = (start < first - _SLACK) | (start > end - 1 + _SLACK)
            high = np.where(outside, -np.inf, high)
            continue
        ends = np.sort(np.stack([(first - start) / slope, (end - 1 - start) / slope]), axis=0)
        low, high = np.maximum(low, ends[0]), np.minimum(high, ends[1])
    return low, high


def _at_fault(
    matrices: np.ndarray,
    shape: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]],
    describe: Sequence[str],
) -> str:
    """The sections that fill least of the middle one's frame."""
    rows = np.arange(shape[0], dtype=np.float64)
    filled = []
    for k, (matrix, box) in enumerate(zip(matrices, boxes, strict=True)):
        low, high = _interval(matrix, box, rows)
        width = np.minimum(high, shape[1] - 1.0) - np.maximum(low, 0.0)
        filled.append((float(np.maximum(width, 0).sum()), k))
    worst = sorted(filled)[:3]
    pixels = float(np.prod(shape))
    return "least filled by " + ", ".join(f"{describe[k]} ({n / pixels:.0%})" for n, k in worst)
