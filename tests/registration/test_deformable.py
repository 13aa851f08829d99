"""The velocity of a pair: it finds, it doesn't fold, it goes both ways, it never gets worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import WorldImage
from scripts.registration.moved import moved_by
from scripts.spatial.warp import warp


@pytest.fixture(scope="module")
def pair(bumps, fixed_grid, moving_grid) -> tuple[WorldImage, WorldImage]:
    """The object on two grids, bent a little on the moving one."""
    affine, shape = moving_grid
    moving = bumps(affine, shape)
    mesh = torch.meshgrid(*[torch.linspace(0, np.pi, n) for n in shape], indexing="ij")
    bend = torch.stack([1.5 * torch.sin(mesh[1]), -1.2 * torch.sin(mesh[0]), 0 * mesh[2]])[None]
    return bumps(*fixed_grid), WorldImage(warp(moving.values, bend), affine)


def apart(fixed: WorldImage, moved: torch.Tensor) -> float:
    return float((moved - fixed.values).square().mean())


def test_a_bend_is_straightened_in_both_directions(pair) -> None:
    fixed, moving = pair
    refine = ElasticRefinement((2, 1), iterations=25, similarity="correlation")
    result = refine(fixed, moving)
    assert result.loss < result.start_loss
    before, _ = moved_by(result.matrix[None], fixed, moving)
    after, _ = moved_by(result.matrix[None], fixed, moving, result.displacement)
    assert apart(fixed, after) < 0.4 * apart(fixed, before)
    assert min(s["corner_min"] for s in result.jacobian.values()) > 0
    assert torch.equal(result.matrix, torch.eye(4, dtype=torch.float64))
    # There and back: x + u(x) followed by the inverse is x.
    there = result.displacement + warp(result.inverse, result.displacement, padding_mode="border")
    assert float(there[:, :, 3:-3, 3:-3, 3:-3].abs().max()) < 0.15


def test_the_matrix_moves_with_the_velocity_only_when_asked(pair) -> None:
    fixed, moving = pair
    start = torch.eye(4, dtype=torch.float64)
    start[0, 3] = 2.0
    joint = ElasticRefinement((2,), iterations=15, family="affine")(fixed, moving, start)
    assert joint.loss < joint.start_loss
    assert not torch.equal(joint.matrix, start)
    alone = ElasticRefinement((2,), iterations=15)(fixed, moving, start)
    assert torch.equal(alone.matrix, start)


def test_equal_images_stay_where_they_are(bumps, fixed_grid) -> None:
    image = bumps(*fixed_grid)
    result = ElasticRefinement((2,), iterations=5)(image, image)
    assert result.loss <= result.start_loss
    assert float(result.displacement.abs().max()) < 0.5


def test_images_without_content_are_refused(bumps, fixed_grid) -> None:
    image = bumps(*fixed_grid)
    flat = WorldImage(torch.ones_like(image.values), image.affine)
    with pytest.raises(ValueError, match="same value everywhere"):
        ElasticRefinement()(image, flat)
    with pytest.raises(ValueError, match="family must be one of"):
        ElasticRefinement(family="projective")


def test_values_under_a_mask_change_nothing_bit_for_bit_and_the_field_follows(pair) -> None:
    fixed, moving = pair
    mask = torch.zeros(fixed.shape, dtype=torch.bool)
    centre = [n // 2 for n in fixed.shape]
    mask[tuple(slice(c - 2, c + 3) for c in centre)] = True
    other = torch.zeros(moving.shape, dtype=torch.bool)
    other[2:5, 3:6] = True
    refine = ElasticRefinement((2, 1), iterations=15)
    result = []
    for value in (0.0, 5.0):
        holed = [
            WorldImage(image.values.where(~hole, value), image.affine).without(hole)
            for image, hole in ((fixed, mask), (moving, other))
        ]
        result.append(refine(*holed))
    assert torch.equal(result[0].displacement, result[1].displacement)
    assert result[0].loss == result[1].loss
    whole = refine(fixed, moving.without(other))
    away = (result[0].displacement - whole.displacement).norm(dim=1)[0]
    assert float(away[mask].max()) < 1.0
    # Without the mask the hole is matched, and the field there is far off.
    unknown = WorldImage(fixed.values.where(~mask, 0.0), fixed.affine)
    off = refine(unknown, moving.without(other)).displacement - whole.displacement
    assert float(off.norm(dim=1)[0][mask].max()) > float(away[mask].max())
