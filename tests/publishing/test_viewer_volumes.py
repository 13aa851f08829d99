"""What the viewer contains decodes to the values it was made from, in their place."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.publishing import viewer_volumes
from scripts.publishing.viewer_volumes import (
    LARGEST_FIELD,
    Block,
    Layer,
    ViewedSubject,
    ViewerGrid,
    WorstSubjects,
)
from scripts.spatial.grid import CropBox, Grid

OFFSET = 0.01


def grid(shape: tuple[int, ...], affine: np.ndarray | None = None) -> Grid:
    affine = np.eye(4) if affine is None else affine
    return Grid(shape, affine, nib.Nifti1Image(np.zeros(shape, np.uint8), affine).header)


def whole(shape: tuple[int, ...]) -> CropBox:
    return CropBox((0,) * len(shape), shape)


def view(shape: tuple[int, ...], affine: np.ndarray | None = None, **options: int) -> ViewerGrid:
    return ViewerGrid.of(grid(shape, affine), whole(shape), OFFSET, **options)


def test_a_block_decodes_to_its_values() -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 6)).astype(np.float32) / 7
    values.flat[0] = 255 / 7
    block = Block.of(values)
    assert np.array_equal(block.values(), np.rint(values * 7))
    assert np.abs(block.values() * block.scale - values).max() < 1e-5
    assert block == Block.of(values)  # the same bytes every time


def test_a_signed_block_keeps_zero_and_sign() -> None:
    values = np.array([[-1.27, 0.0, 0.64]])
    block = Block.of(values, signed=True)
    assert (block.values().astype(int) - 128).tolist() == [[-127, 0, 64]]
    assert block.scale == pytest.approx(0.01)


def test_a_field_is_exact_to_a_part_in_65000() -> None:
    field = np.random.default_rng(0).normal(0, 4, (3, 4, 5, 6))
    block = Block.of_field(field)
    assert block.values().shape == field.shape
    assert np.abs(block.values() * block.scale - field).max() <= np.abs(field).max() / 65000


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.full((2, 3), np.nan)])
def test_nothing_to_show_is_zero(values: np.ndarray) -> None:
    for block in (Block.of(values), Block.of(values, signed=True), Block.of_field(values[None])):
        assert block.scale == 1
        assert set(block.values().ravel().tolist()) <= {0, 128}


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([-2.0, 3.0, 1.0, 1.0]),
        np.array([[0, 0, 2.0, 5], [-3.0, 0, 0, 1], [0, 1.0, 0, -7], [0, 0, 0, 1]]),
    ],
)
def test_axes_run_to_right_anterior_superior(affine: np.ndarray) -> None:
    """A voxel keeps its place in the world, whatever the order of the file."""
    shape = (4, 5, 6)
    volume = np.zeros(shape)
    volume[1, 3, 2] = 1
    made = view(shape, affine)
    assert made.ends == ["LR", "PA", "IS"]
    assert (np.diag(made.affine)[:3] > 0).all()
    (place,) = np.argwhere(made.reduced(volume))
    assert np.allclose(made.affine @ [*place, 1], affine @ [1, 3, 2, 1])


def test_vectors_turn_with_the_axes() -> None:
    """A displacement in voxels is shown in millimetres along the axes of the page."""
    affine = np.array([[0, 0, 2.0, 5], [-3.0, 0, 0, 1], [0, 1.0, 0, -7], [0, 0, 0, 1]])
    shape = (6, 6, 6)
    moves = np.array([1.0, 2.0, 0.5])
    field = np.broadcast_to(moves.reshape(3, 1, 1, 1), (3, *shape))
    layer = view(shape, affine).field("f", field)
    shown = layer.whole.values()[:, 0, 0, 0] * layer.whole.scale
    assert shown == pytest.approx(affine[:3, :3] @ moves, abs=1e-3)


def test_large_volumes_are_averaged_in_cubes() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    made = view((9, 8, 5), affine, largest=120)
    assert made.factors == (2, 2, 1)
    assert made.shape == (5, 4, 5)
    assert made.spacing == (2, 2, 3)
    volume = np.random.default_rng(0).random((9, 8, 5))
    reduced = made.reduced(volume)
    assert reduced[1, 2, 3] == pytest.approx(volume[2:4, 4:6, 3].mean())
    assert reduced[4, 0, 0] == pytest.approx(volume[8:, :2, 0].mean())  # half a block
    # The middle of the first block.
    assert made.affine @ [0, 0, 0, 1] == pytest.approx([0.5, 0.5, 0, 1])


def test_a_box_keeps_its_place() -> None:
    made = ViewerGrid.of(grid((9, 9, 9)), CropBox((1, 2, 3), (5, 6, 7)), OFFSET)
    assert made.shape == (4, 4, 4)
    assert made.affine @ [0, 0, 0, 1] == pytest.approx([1, 2, 3, 1])


def test_an_image_of_one_plane_has_two_axes() -> None:
    made = view((6, 7))
    assert made.ends == ["LR", "PA"]
    assert made.density("d", np.ones((1, 6, 7))).whole.shape == (6, 7)
    assert made.field("f", np.ones((2, 6, 7))).whole.shape == (2, 6, 7)


def test_densities_are_logarithms_and_tracts_are_apart() -> None:
    density = np.zeros((2, 3, 3, 3))
    density[0, 0, 0, 0], density[1, 1, 1, 1] = 0.5, 0.25
    layer = view((3, 3, 3)).density("d", density)
    assert len(layer.tracts) == 2
    for block, at, value in (
        (layer.tracts[0], (0, 0, 0), 0.5),
        (layer.tracts[1], (1, 1, 1), 0.25),
        (layer.whole, (0, 0, 0), 0.5),
        (layer.whole, (1, 1, 1), 0.25),
    ):
        stored = block.values()[at] * block.scale
        assert stored == pytest.approx(np.log1p(value / OFFSET), abs=block.scale)
    assert view((3, 3, 3)).density("d", density[:1]).tracts == ()


def test_growth_is_a_logarithm() -> None:
    ratio = np.ones((4, 4, 4))
    ratio[0], ratio[1], ratio[2] = 2, 0.5, -1  # the last one folds
    layer = view((4, 4, 4)).growth("g", ratio)
    shown = (layer.whole.values()[:, 0, 0].astype(float) - 128) * layer.whole.scale
    wanted = np.log([2, 0.5, 1e-3, 1])
    assert shown == pytest.approx(wanted, abs=layer.whole.scale)


def test_fields_are_small() -> None:
    made = view((60, 70, 60))
    layer = made.field("f", np.zeros((3, 60, 70, 60)))
    assert layer.step == made.step > 1
    assert np.prod(layer.whole.shape[1:]) <= LARGEST_FIELD


def test_labels_are_whole_numbers_in_their_place_with_their_names() -> None:
    affine = np.diag([-2.0, 3.0, 1.0, 1.0])
    labels = np.random.default_rng(0).choice([0, -3, 7, 2**40 + 1], (4, 5, 6))
    layer = view((4, 5, 6), affine).labels("l", labels, {7: "seven"})
    assert layer.names == ("-3", "seven", str(2**40 + 1))
    numbers = np.array([0, -3, 7, 2**40 + 1])
    assert np.array_equal(numbers[layer.whole.values()], labels[::-1])  # to the right
    assert layer.whole.scale == layer.step == 1


def test_many_labels_get_more_bits() -> None:
    labels = np.arange(343).reshape(7, 7, 7)
    layer = view((7, 7, 7)).labels("l", labels, {})
    assert np.array_equal(layer.whole.values(), labels)
    assert np.array_equal(Block.of_numbers(np.array([0, 70_000])).values(), [0, 70_000])


def test_reduced_labels_are_those_of_the_middle_of_their_block_never_a_mean() -> None:
    labels = np.arange(9 * 8 * 5).reshape(9, 8, 5) + 1
    layer = view((9, 8, 5), np.diag([1.0, 1.0, 3.0, 1.0]), largest=120).labels("l", labels, {})
    shown = np.array(["0", *layer.names])[layer.whole.values()].astype(int)
    assert shown[1, 2, 3] == labels[3, 5, 3]
    assert shown[4, 0, 0] == labels[8, 1, 0]  # half a block


def test_a_misfit_is_reduced_like_a_field() -> None:
    values = np.zeros((60, 70, 60))
    values[:30] = 0.5
    layer = view((60, 70, 60)).misfit("m", values)
    assert layer.step == 2
    assert layer.whole.values()[:15].max() * layer.whole.scale == pytest.approx(0.5)
    assert not layer.whole.values()[15:].any()


def test_the_worst_are_kept_in_any_order() -> None:
    layer = Layer("x", "plain", Block.of(np.zeros((1, 1))))
    orders = [(True, 0.5, 0), (True, 0.9, 1), (False, 0.95, 2), (True, 0.5, 3), (True, 0.2, 4)]
    everyone = [ViewedSubject(str(order[2]), order, {"image": layer}) for order in orders]
    worst = WorstSubjects(3)
    for one in everyone:
        if worst.wants(one.order):
            worst.add([one])
    assert [one.name for one in worst.sorted()] == ["2", "4", "0"]
    # In parts, as several processes find them.
    first, second = WorstSubjects(3), WorstSubjects(3)
    first.add(everyone[:2])
    second.add(everyone[2:])
    second.add(first.kept)
    assert second.sorted() == worst.sorted()


def test_tracts_are_dropped_where_a_page_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays that of a page, however many tracts there are."""
    block = Block.of(np.random.default_rng(0).random((9, 9)))
    layer = Layer("x", "density", block, tracts=(block, block))
    monkeypatch.setattr(viewer_volumes, "BUDGET", 2 * layer.size)
    worst = WorstSubjects(4)
    for place in (3, 1, 2, 0):
        worst.add([ViewedSubject(str(place), (True, place / 10, place), {"image": layer})])
    kept = [one.layers["image"].tracts for one in worst.sorted()]
    assert kept[0] == (block, block)  # the worst
    assert kept[2:] == [(None, None)] * 2
    assert all(one.layers["image"].whole == block for one in worst.kept)
