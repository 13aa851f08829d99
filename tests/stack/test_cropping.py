"""The crop is the largest rectangle there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.stack.cropping import CropBox, crop_box
from scripts.stack.planar import PlanarModel, Plane


def filled(matrices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of the registered grid that all sections fill."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    inside = np.ones(rows.size, dtype=bool)
    for matrix in matrices:
        y, x = (matrix @ points)[:2]
        inside &= (y > -1e-6) & (y < shape[0] - 1 + 1e-6)
        inside &= (x > -1e-6) & (x < shape[1] - 1 + 1e-6)
    return inside.reshape(shape)


def largest(mask: np.ndarray) -> int:
    """Area of the largest rectangle, by trying all of them."""
    sums = np.pad(mask.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best = 0
    rows, columns = (itertools.combinations(range(n + 1), 2) for n in mask.shape)
    columns_list = list(columns)
    for top, bottom in rows:
        for left, right in columns_list:
            area = (bottom - top) * (right - left)
            whole = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            if area > best and whole == area:
                best = area
    return best


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_largest_of_all_rectangles(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (17, 23)
    plane, model = Plane(shape, (1.0, 1.0)), PlanarModel("affine")
    matrices = np.stack(
        [
            plane.pixel_matrix(model.matrix(random.normal(0, 0.12, model.count), plane))
            for _ in range(3)
        ]
    )
    mask = filled(matrices, shape)
    box = crop_box(matrices, shape, [(0, 17, 0, 23)] * 3, 0, ["a", "b", "c"])
    assert mask[box.top : box.bottom, box.left : box.right].all()
    assert np.prod(box.shape) == largest(mask) > 0


def test_nothing_is_taken_off_copies_but_the_margin() -> None:
    same = np.tile(np.eye(3), (4, 1, 1))
    assert crop_box(same, (30, 40), [(0, 30, 0, 40)] * 4, 0, "abcd") == CropBox(0, 30, 0, 40)
    assert crop_box(same, (30, 40), [(0, 30, 0, 40)] * 4, 5, "abcd") == CropBox(5, 25, 5, 35)


def test_a_padded_section_fills_only_what_it_has() -> None:
    same = np.tile(np.eye(3), (2, 1, 1))
    boxes = [(0, 30, 0, 40), (2, 28, 5, 39)]
    assert crop_box(same, (30, 40), boxes, 0, "ab") == CropBox(2, 28, 5, 39)


def test_an_empty_crop_names_the_sections() -> None:
    apart = np.tile(np.eye(3), (3, 1, 1))
    apart[1, 0, 2], apart[2, 0, 2] = 20, -20
    names = ["section 0 (x)", "section 1 (y)", "section 2 (z)"]
    with pytest.raises(CohortError, match=r"no rectangle that all sections fill; least filled by "
                       r"section 1 \(y\) \(32%\), section 2 \(z\)"):  # fmt: skip
        crop_box(apart, (30, 40), [(0, 30, 0, 40)] * 3, 0, names)
    with pytest.raises(CohortError, match="less the margin of 15 pixels"):
        crop_box(np.tile(np.eye(3), (3, 1, 1)), (30, 40), [(0, 30, 0, 40)] * 3, 15, names)
