"""Grids that are the same or aren't, and boxes of voxels."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.spatial.grid import CropBox, Grid, StorageOrder

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def grid(affine=AFFINE, shape=(20, 30, 40)) -> Grid:
    return Grid(shape, np.array(affine, dtype=float), nib.Nifti1Header())


def moved(shift=(0, 0, 0), scale=(1, 1, 1), affine=AFFINE) -> np.ndarray:
    affine = affine.copy()
    affine[:3, :3] = affine[:3, :3] * np.array(scale)
    affine[:3, 3] += shift
    return affine


def test_spacing_is_the_length_of_the_columns():
    angle = np.deg2rad(30)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 2.0, 0.15])
    assert grid(affine).spacing == pytest.approx((1.5, 2.0, 0.15))
    assert grid(affine, (20, 30)).spacing == pytest.approx((1.5, 2.0))


# Voxels are 2 mm: the tolerance is 0.02 mm at the corners.
@pytest.mark.parametrize("shift", [(0, 0, 0), (1.9e-2, 0, 0), (0, -1.9e-2, 0)])
def test_within_the_tolerance_grids_are_the_same(shift):
    assert grid(moved(shift)).same_as(grid()) is None


@pytest.mark.parametrize(
    "other, words",
    [
        (grid(shape=(20, 30, 41)), ["shape 20 x 30 x 41 against 20 x 30 x 40"]),
        (grid(shape=(20, 30)), ["shape 20 x 30 against 20 x 30 x 40"]),
        (grid(moved((2.2e-2, 0, 0))), ["shifted by (0.022, 0, 0) mm", "0.011 voxels"]),
        (grid(moved((0, 0, -4))), ["shifted by (0, 0, -4) mm", "2 voxels"]),
        (grid(moved(scale=(-1, 1, 1))), ["flipped along axis 0"]),
        (grid(moved(scale=(1, -1, -1))), ["flipped along axis 1, 2"]),
        # The same box of the world, stored from the other side: still another grid.
        (grid(moved((-38, 0, 0), (-1, 1, 1))), ["flipped along axis 0", "19 voxels"]),
        # 1e-3 of a voxel per voxel is 4e-2 at the far corner.
        (grid(moved(scale=(1, 1, 1 + 1e-3))), ["against", "0.03896 voxels"]),
    ],
)
def test_differences_are_named(other, words):
    difference = other.same_as(grid())
    assert difference is not None
    for word in words:
        assert word in difference


def test_swapped_axes_are_another_grid():
    swapped = AFFINE[:, [1, 0, 2, 3]]
    assert "against" in str(grid(swapped, (20, 20, 20)).same_as(grid(shape=(20, 20, 20))))


def test_a_plane_in_another_place_is_another_grid():
    plane = grid(shape=(20, 30))
    assert grid(shape=(20, 30)).same_as(plane) is None
    assert "shifted" in str(grid(moved((0, 0, 2)), (20, 30)).same_as(plane))
    assert "flipped along axis 2" in str(grid(moved(scale=(1, 1, -1)), (20, 30)).same_as(plane))


def test_box_around_the_support():
    support = np.zeros((6, 7, 8), dtype=bool)
    support[1, 2, 3] = support[4, 2, 7] = True
    assert CropBox.around(support) == CropBox((1, 2, 3), (5, 3, 8))


boxes = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=2).map(
    lambda axes: CropBox(tuple(a for a, _ in axes), tuple(min(a + n, 10) for a, n in axes))
)


@given(boxes)
def test_paste_undoes_crop_inside_the_box_and_fills_outside(box):
    array = np.arange(1, 301, dtype=np.float32).reshape(3, 10, 10)
    pasted = box.paste(box.crop(array), (10, 10), fill=-1)
    inside = np.zeros((10, 10), dtype=bool)
    inside[box.slices] = True
    assert pasted.dtype == array.dtype
    assert np.array_equal(pasted[:, inside], array[:, inside])
    assert (pasted[:, ~inside] == -1).all()
    assert box.crop(array).shape == (3, *box.shape)


@given(boxes, boxes)
def test_union_contains_both_and_within_undoes_it(one, other):
    union = one.union(other)
    for box in (one, other):
        array = np.arange(100).reshape(10, 10)
        assert np.array_equal(box.within(union).crop(union.crop(array)), box.crop(array))


@given(boxes, st.integers(0, 20))
def test_grown_stays_on_the_grid(box, margin):
    grown = box.grown(margin, (10, 10))
    assert grown.union(box) == grown
    for axis in range(2):
        assert grown.start[axis] == max(0, box.start[axis] - margin)
        assert grown.stop[axis] == min(10, box.stop[axis] + margin)


@given(
    axes=st.permutations([0, 1, 2]),
    flips=st.lists(st.booleans(), min_size=3, max_size=3),
    then=st.permutations([0, 1, 2]),
)
def test_an_order_of_storage_brings_every_voxel_to_its_place(axes, flips, then):
    """Values that are their own world coordinates stay so; orders compose and become numbers."""
    own = Grid((3, 4, 5), moved((1, 2, 3), (-1, 2, 1)), nib.Nifti1Header())
    order = StorageOrder(tuple(axes), tuple(flips))
    other = order.of_grid(own)
    assert own.order_onto(other) == order == StorageOrder.from_list(order.as_list())
    numbered = np.arange(60).reshape(own.shape)
    np.testing.assert_array_equal(own.in_order_of(other, numbered), order.of_array(numbered))
    places = np.indices(own.shape).reshape(3, -1)
    world = (own.affine[:3, :3] @ places + own.affine[:3, 3:]).reshape(3, *own.shape)
    turned = order.of_array(world)
    theirs = np.indices(other.shape).reshape(3, -1)
    np.testing.assert_allclose(
        turned.reshape(3, -1), other.affine[:3, :3] @ theirs + other.affine[:3, 3:], atol=1e-9
    )
    box = CropBox((0, 1, 2), (2, 3, 5))
    marked = np.zeros(own.shape, dtype=bool)
    marked[box.slices] = True
    assert CropBox.around(order.of_array(marked)) == order.of_box(box, own.shape)
    second = StorageOrder(tuple(then), tuple(flips[::-1]))
    np.testing.assert_array_equal(
        order.then(second).of_array(marked), second.of_array(order.of_array(marked))
    )


def test_other_voxels_have_no_order():
    own = Grid((3, 4, 5), np.eye(4), nib.Nifti1Header())
    shifted, finer = np.eye(4), np.diag([0.5, 1, 1, 1.0])
    shifted[0, 3] = 0.5
    for affine in (shifted, finer):
        assert own.order_onto(Grid((3, 4, 5), affine, own.header)) is None
        assert own.in_order_of(Grid((3, 4, 5), affine, own.header), np.zeros(own.shape)) is None
    assert own.order_onto(Grid((3, 4), np.eye(4), own.header)) is None
