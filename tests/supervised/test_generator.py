"""Random displacements: their inverse, their folds, their border, their seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_pairs import sections

from scripts.settings.make_pairs import MakePairsConfig
from scripts.supervised.generator import (
    Displacements,
    PairGenerator,
    folded_voxels,
    inverse_error,
)
from scripts.supervised.layers import affine_of_field, warp_image

KINDS = ["noise", "control_points", "edge_stretching", "none"]


def generator(shape=(64, 80), **changes) -> PairGenerator:
    block = {
        "reference": ["a"],
        "affine": {"translation": 4.0},
        "elastic": {"rms": 2.0, "width": 14.0, "anchor": 0.25},
    }
    for key, value in changes.items():
        block[key] = {**block.get(key, {}), **value} if isinstance(value, dict) else value
    return PairGenerator(MakePairsConfig.load(block), shape)


def as_pair(made) -> Displacements:
    return Displacements(*(torch.from_numpy(one)[None] for one in (made.field, made.inverse)))


@pytest.mark.parametrize("kind", KINDS)
def test_made_fields_lead_back_fold_nowhere_and_fit_their_images(kind):
    image = sections(1, (64, 80))[0]
    make = generator(elastic={"kind": kind})
    lengths = []
    for number in range(6):
        made = make(number, image)
        assert made.changed
        assert inverse_error(as_pair(made)) < 0.05
        assert folded_voxels(torch.from_numpy(made.field)) == 0
        moved = warp_image(
            torch.from_numpy(made.moving).float()[None, None], torch.from_numpy(made.field)[None]
        )[0, 0].numpy()
        assert np.corrcoef(moved.ravel(), image.ravel())[0, 1] > 0.98
        lengths.append(np.sqrt((made.field**2).sum(0)).mean())
    assert 0.5 < np.mean(lengths) < 8


def test_a_volume_works_the_same():
    image = sections(1, (24, 20, 28))[0]
    made = generator((24, 20, 28), elastic={"rms": 0.8, "width": 6.0})(0, image)
    assert made.changed
    assert made.field.shape == (3, 24, 20, 28)
    assert inverse_error(as_pair(made)) < 0.05


def test_an_affine_pair_is_affine():
    made = generator(elastic={"kind": "none"})(3, sections(1, (64, 80))[0])
    field = torch.from_numpy(made.field)[None]
    left = field - affine_of_field(field).displacement((64, 80))
    assert left.abs().max() < 1e-3
    assert field.abs().max() > 0.5


def test_anchored_fields_fade_at_the_border():
    still = {"probability": 0.0}
    image = sections(1, (64, 80))[0]
    anchored = generator(affine=still, elastic={"anchor": 0.2})(0, image).field
    free = generator(affine=still, elastic={"anchor": 0.0})(0, image).field
    border = np.ones((64, 80), dtype=bool)
    border[1:-1, 1:-1] = False
    assert np.abs(anchored[:, border]).max() < 1e-6
    assert np.abs(free[:, border]).max() > 0.1


def test_a_pair_depends_on_seed_and_number_alone():
    image = sections(1, (64, 80))[0]
    first, again, other = (generator(seed=s)(5, image) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.field, again.field)
    np.testing.assert_array_equal(first.moving, again.moving)
    assert not np.array_equal(first.field, other.field)
    assert not np.array_equal(first.field, generator(seed=1)(6, image).field)


def test_displacements_that_fail_leave_the_pair_as_it_was():
    image = sections(1, (64, 80))[0]
    made = generator(elastic={"rms": 500.0, "width": 2.0}, trials=2)(0, image)
    assert not made.changed
    np.testing.assert_array_equal(made.moving, image)
    assert np.abs(made.field).max() == 0


def test_a_pair_of_a_store_is_deformed_further_from_either_image():
    image = sections(1, (64, 80))[0]
    first = generator()(0, image)
    for share in (0.0, 1.0):
        made = generator(seed=9, start_registered=share)(
            1, first.moving, first.field, first.inverse
        )
        assert made.changed
        assert inverse_error(as_pair(made)) < 0.05
        moved = warp_image(
            torch.from_numpy(made.moving).float()[None, None], torch.from_numpy(made.field)[None]
        )[0, 0].numpy()
        assert np.corrcoef(moved.ravel(), image.ravel())[0, 1] > 0.97
        assert not np.allclose(made.field, first.field, atol=0.1)


def test_edge_stretching_moves_edges():
    """Bumps lie where the image has edges: far from them little moves."""
    image = np.zeros((96, 96), np.uint8)
    image[30:50, 30:50] = 200
    make = generator(
        (96, 96), affine={"probability": 0.0},
        elastic={"kind": "edge_stretching", "width": 6.0, "anchor": 0.0, "points": 6},
    )  # fmt: skip
    lengths = np.mean([np.sqrt((make(i, image).field ** 2).sum(0)) for i in range(8)], axis=0)
    assert lengths[30:50, 30:50].mean() > 20 * lengths[75:, 75:].mean()
