"""Refinement finds known transforms, never ends worse than it starts, and refuses the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.registration.affine import AffineRefinement
from scripts.registration.images import WorldImage, reduced, reduction_factors
from scripts.registration.initialisation import rotations_all_over, starting_matrices
from scripts.registration.similarity import PairLoss, correlation_loss
from scripts.spatial.affine_parameters import (
    FAMILIES,
    Frame,
    matrix_of,
    parameter_count,
    parameters_of,
)


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two rotations."""
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def rigid(
    angles: tuple[float, float, float], shift: tuple[float, float, float], grid
) -> np.ndarray:
    """Degrees and millimetres about the grid's centre."""
    frame = Frame.of_grid(*grid)
    shifts = torch.tensor(shift, dtype=torch.float64) / frame.half_width
    turns = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    return matrix_of(torch.cat([turns, shifts])[None], "rigid", frame)[0].numpy()


@pytest.mark.parametrize(
    ("angles", "shift"),
    [((25.0, -10.0, 12.0), (6.0, -5.0, 4.0)), ((0.0, 0.0, 30.0), (-8.0, 6.0, 5.0))],
)
def test_a_rigid_transform_between_other_grids_is_found(
    bumps, fixed_grid, moving_grid, angles, shift
) -> None:
    truth = rigid(angles, shift, fixed_grid)
    moving = bumps(*moving_grid)
    # fixed(x) = object(truth x): what the moving image shows at truth x.
    fixed = bumps(*fixed_grid, truth)
    result = AffineRefinement("rigid", levels=(2, 1), similarity="correlation")(fixed, moving)
    found = result.matrix.numpy()
    assert angle_between(found, truth) < 0.5
    centre = Frame.of_grid(*fixed_grid).centre.numpy()
    apart = (found - truth)[:3, :3] @ centre + (found - truth)[:3, 3]
    assert np.linalg.norm(apart) < 0.5
    assert result.loss < 0.5 * result.start_loss


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotations_over_ninety_degrees_are_found(bumps, fixed_grid, axis) -> None:
    angles = [0.0, 0.0, 0.0]
    angles[axis] = 130.0
    truth = rigid(tuple(angles), (2.0, 1.0, -1.0), fixed_grid)
    fixed = bumps(*fixed_grid, truth)
    moving = bumps(*fixed_grid)
    result = AffineRefinement("rigid", ("axes",), (2, 1))(fixed, moving).matrix.numpy()
    assert angle_between(result, truth) < 1.0


def test_an_affine_transform_is_found_and_stays_in_its_family(bumps, fixed_grid) -> None:
    frame = Frame.of_grid(*fixed_grid)
    wanted = torch.tensor(
        [[0.2, -0.1, 0.15, 0.1, -0.05, 0.1, 0.12, -0.1, 0.08, 0.05, -0.06, 0.1]],
        dtype=torch.float64,
    )
    truth = matrix_of(wanted, "affine", frame)[0].numpy()
    fixed, moving = bumps(*fixed_grid, truth), bumps(*fixed_grid)
    result = AffineRefinement("affine", levels=(2, 1), similarity="correlation")(fixed, moving)
    np.testing.assert_allclose(result.matrix[:3, :3], truth[:3, :3], atol=0.04)
    lower = AffineRefinement("rigid_anisotropic", levels=(2,))(fixed, moving)
    parameters_of(lower.matrix[None], "rigid_anisotropic", frame)  # raises if it lies outside


def test_the_result_is_never_worse_than_its_start(bumps, fixed_grid) -> None:
    truth = rigid((20.0, 0.0, 0.0), (3.0, 0.0, 0.0), fixed_grid)
    fixed, moving = bumps(*fixed_grid, truth), bumps(*fixed_grid)
    start = torch.from_numpy(truth)
    for starts in ((), ("identity", "centre")):
        result = AffineRefinement("rigid", starts, (2, 1), iterations=3)(fixed, moving, start)
        assert result.loss <= result.start_loss
        assert result.start_loss < 0.1
        assert angle_between(result.matrix.numpy(), truth) < 3.0


def test_a_plane_is_aligned_in_its_plane(bumps) -> None:
    grid = (np.diag([1.3, 1.0, 1.0, 1.0]), (30, 34))
    grid[0][:2, 3] = (-19.0, -16.5)
    frame = Frame.of_grid(*grid)
    truth = matrix_of(torch.tensor([[0.5, 0.1, -0.15]]), "rigid", frame)[0].numpy()
    fixed, moving = bumps(*grid, truth), bumps(*grid)
    result = AffineRefinement("rigid", levels=(2, 1))(fixed, moving).matrix.numpy()
    assert angle_between(result, truth) < 1.0
    np.testing.assert_allclose(result[2], (0, 0, 1, 0), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_in_a_plane(bumps, family) -> None:
    grid = (np.diag([1.3, 1.0, 1.0, 1.0]), (30, 34))
    grid[0][:2, 3] = (-19.0, -16.5)
    frame = Frame.of_grid(*grid)
    wanted = torch.tensor([[0.4, 0.1, -0.12, 0.1, -0.08, 0.1]], dtype=torch.float64)
    count = parameter_count(family, 2)
    truth = matrix_of(wanted[:, :count], family, frame)
    fixed, moving = bumps(*grid, truth[0].numpy()), bumps(*grid)
    refine = AffineRefinement(family, levels=(2, 1), similarity="correlation")
    result = refine(fixed, moving).matrix[None]
    apart = parameters_of(result, family, frame) - wanted[:, :count]  # raises outside the family
    assert float(apart.abs().max()) < 0.03
    assert parameters_of(result, family, frame).shape == (1, count)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_what_is_found_on_an_oblique_anisotropic_grid_is_of_its_family(
    bumps, fixed_grid, moving_grid, family
) -> None:
    """Rigid is rigid in millimetres, whatever the voxels of either image."""
    truth = rigid((20.0, -15.0, 10.0), (3.0, -2.0, 2.0), moving_grid)
    fixed, moving = bumps(*moving_grid, truth), bumps(*fixed_grid)
    result = AffineRefinement(family, levels=(3, 2), iterations=20)(fixed, moving).matrix
    assert angle_between(result.numpy(), np.eye(4)) > 5
    frame = Frame.of_grid(*moving_grid)
    linear = frame.axes.T @ result[:3, :3] @ frame.axes
    gram = linear.T @ linear
    if family == "rigid":
        torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64))
    elif family == "rigid_isotropic":
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(3, dtype=torch.float64))
    else:
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-9, rtol=0)
    assert float(torch.linalg.det(result[:3, :3])) > 0


def test_what_is_unknown_outside_of_a_crop_does_not_count(bumps, fixed_grid) -> None:
    """The moving image is half an object on a bright floor: its edge must not be matched."""
    affine, shape = fixed_grid
    whole = bumps(affine, shape)
    half = WorldImage(whole.values[:, :, :15] + 1.0, affine).without_background()
    fixed = WorldImage(whole.values + 1.0, affine).without_background()
    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3] = 3.0
    refine = AffineRefinement("rigid", ("identity",), (2, 1), similarity="correlation")
    result = refine(fixed, half, shift).matrix
    assert float(result[:3, 3].norm()) < 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.full((1, 1, 8, 8, 8), 3.0), "same value everywhere"),
        (torch.zeros(1, 1, 8, 8, 8), "same value everywhere"),
        (torch.full((1, 1, 8, 8, 8), torch.nan), "aren't finite"),
    ],
)
def test_images_without_content_are_refused(bumps, fixed_grid, values, message) -> None:
    empty = WorldImage(values, np.eye(4))
    with pytest.raises(ValueError, match=message):
        AffineRefinement()(bumps(*fixed_grid), empty)
    with pytest.raises(ValueError, match=message):
        AffineRefinement()(empty, bumps(*fixed_grid))


def test_a_start_outside_of_the_family_is_refused(bumps, fixed_grid) -> None:
    image = bumps(*fixed_grid)
    stretched = torch.diag(torch.tensor([1.2, 1.0, 1.0, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="isn't in the transform model rigid"):
        AffineRefinement("rigid")(image, image, stretched)


def test_principal_axes_lead_back_from_any_rotation(bumps, fixed_grid) -> None:
    for angles in ((170.0, 0.0, 0.0), (40.0, 80.0, -120.0)):
        truth = rigid(angles, (1.0, 2.0, 0.0), fixed_grid)
        result = starting_matrices(bumps(*fixed_grid, truth), bumps(*fixed_grid), ("axes",))
        assert min(angle_between(one.numpy(), truth) for one in result) < 12.0
        assert np.allclose(np.linalg.det(result.numpy()), 1.0)


def test_searched_rotations_leave_no_gap() -> None:
    turns = rotations_all_over(3)
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.eye(3)[None].repeat(96, 0), atol=1e-9
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        wanted *= np.sign(np.linalg.det(wanted))
        assert min(angle_between(turn, wanted) for turn in turns) < 50.0


def test_correlation_is_pearsons_and_blind_to_gain() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 6, 7, 5, generator=rng), torch.rand(1, 1, 6, 7, 5, generator=rng)
    expected = [1 - np.corrcoef(one.flatten(), b.flatten())[0, 1] for one in a]
    np.testing.assert_allclose(correlation_loss(a, b).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(correlation_loss(3 * a + 2, b), correlation_loss(a, b))
    mask = torch.zeros(1, 1, 6, 7, 5)
    mask[:, :, :3] = 1
    inside = 1 - np.corrcoef(a[0, :, :3].flatten(), b[0, :, :3].flatten())[0, 1]
    assert float(correlation_loss(a, b, mask)[0]) == pytest.approx(inside, abs=1e-5)


def test_a_constant_image_has_correlation_zero_and_no_gradient() -> None:
    moved = torch.full((1, 1, 6, 6, 6), 5.0, requires_grad=True)
    loss = correlation_loss(moved, torch.rand(1, 1, 6, 6, 6))
    assert float(loss.detach()) == 1.0
    (slope,) = torch.autograd.grad(loss.sum(), moved)
    assert bool(torch.isfinite(slope).all())


def test_losses_come_one_an_image(bumps, fixed_grid) -> None:
    fixed = bumps(*fixed_grid)
    moved = torch.cat([fixed.values, fixed.values.flip(2)])
    for kind in ("correlation", "local_correlation"):
        same, other = PairLoss(fixed, kind)(moved)
        assert float(same) < 0.06 < 0.1 < float(other)
    with pytest.raises(ValueError, match="similarity must be one of"):
        PairLoss(fixed, "magic")


def test_levels_keep_their_place_in_the_world(bumps, fixed_grid) -> None:
    image = bumps(*fixed_grid)
    assert reduction_factors(image.spacing, 2 * 1.6) == (2, 2, 1)
    small = reduced(image, (2, 2, 2))
    assert small.shape == (12, 10, 7)
    again = bumps(small.affine, small.shape)
    assert float((small.values - again.values).abs().max()) < 0.2
    centre = Frame.of_grid(small.affine, small.shape).centre
    torch.testing.assert_close(centre, Frame.of_grid(image.affine, image.shape).centre)
