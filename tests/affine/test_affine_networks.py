"""Affine networks: identity at the start, cascades, symmetry, and matrices that come back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from affine_blobs import blobs
from monai.networks.nets.resnet import resnet18

from scripts.affine.estimators import KeypointEstimator, ParameterEstimator, centres_of_mass
from scripts.affine.inference import estimate_matrix
from scripts.affine.network import AffineNetwork, corner_points, nearest_member
from scripts.affine.pairs import SyntheticPairs, sample_parameters
from scripts.affine.training import AffineLoss
from scripts.errors import CohortError
from scripts.metrics.matrices import matrix_errors
from scripts.pairwise.network_grid import WorkingGrid, between_0_and_1
from scripts.settings.affine import LearnedAffinePairsConfig
from scripts.settings.pairwise import AUGMENTATIONS
from scripts.spatial.affine_parameters import FAMILIES, matrix_of, parameter_count, parameters_of
from scripts.spatial.resampling import resample_by_matrix

GRID = WorkingGrid((16, 18, 17), 2.0)
PLANE = WorkingGrid((20, 16), 1.5)
SMALL = {"width": 0.125, "keypoints": 8}


def network(grid: WorkingGrid = GRID, **options) -> AffineNetwork:
    torch.manual_seed(0)
    described = {"settings": {"images": {"log_share": None}}}
    return AffineNetwork(grid, description=described, **{**SMALL, **options}).eval()


def image(grid: WorkingGrid = GRID, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(between_0_and_1(blobs(grid.shape, seed)))[None, None]


@pytest.mark.parametrize("grid", [GRID, PLANE], ids=["3d", "2d"])
@pytest.mark.parametrize("pair", ["channels", "towers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_network_is_the_identity_at_the_start(grid, pair, family):
    made = network(grid, family=family, pair=pair, passes=2)
    result = made(torch.cat([image(grid), image(grid, 2)], dim=1))
    eye = torch.eye(4, dtype=torch.float64)[None]
    torch.testing.assert_close(result, eye, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(24, 24, 24), (48, 56, 48), (32, 40)])
def test_width_1_is_monais_resnet_18(shape):
    """All its convolutions, whatever the entrance for small images."""
    frame = WorkingGrid(shape, 2.0).frame
    ours = ParameterEstimator(shape, frame, "affine", width=1.0).backbone
    monai = resnet18(spatial_dims=len(shape), n_input_channels=2, feed_forward=False)
    sizes = [
        {
            name: tuple(layer.weight.shape)
            for name, layer in network.named_modules()
            if hasattr(layer, "kernel_size") and hasattr(layer, "weight")
        }
        for network in (ours, monai)
    ]
    entrance = sizes[0].pop("conv1"), sizes[1].pop("conv1")
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 19
    assert entrance[0][:2] == entrance[1][:2] == (64, 2)
    assert (entrance[0] == entrance[1]) is (min(shape) >= 48)
    assert ours.in_planes == 512


@pytest.mark.parametrize("grid", [GRID, PLANE], ids=["3d", "2d"])
@pytest.mark.parametrize("backbone", ["unet", "resnet"])
def test_keypoint_network_is_symmetric_and_knows_equal_images(grid, backbone):
    made = network(grid, kind="keypoints", backbone=backbone, family="rigid_isotropic")
    one, two = image(grid), image(grid, 2)
    with torch.no_grad():
        forward, backward = made(torch.cat([one, two], 1)), made(torch.cat([two, one], 1))
        same = made(torch.cat([one, one], 1))
    eye = torch.eye(4, dtype=torch.float64)[None]
    torch.testing.assert_close(forward @ backward, eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(same, eye, rtol=0, atol=1e-6)
    assert float((forward - eye).abs().max()) > 1e-3  # so the first assertion says something


@pytest.mark.parametrize("grid", [GRID, PLANE], ids=["3d", "2d"])
@pytest.mark.parametrize("kind", ["parameters", "keypoints"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_networks_give_members_of_every_family_and_learn_from_the_loss(grid, kind, family):
    made = network(grid, kind=kind, family=family, passes=2)
    if kind == "parameters":  # away from the identity
        torch.nn.init.normal_(made.estimator.head[-1].weight, std=0.02)
    batch = pairs(family, grid)(torch.cat([image(grid), image(grid, 2)]), (0, 0))
    passes = made.cascade(batch.pair)
    result = passes[-1].matrix
    assert float((result - torch.eye(4)).abs().amax()) > 1e-4
    again = matrix_of(parameters_of(result.detach(), family, grid.frame), family, grid.frame)
    torch.testing.assert_close(again, result.detach())
    AffineLoss(1.0, 0.1)(made, passes, batch)["loss"].backward()
    slopes = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
    assert sum(float(slope.abs().sum()) for slope in slopes) > 0


def test_an_estimate_does_not_depend_on_how_voxels_are_stored():
    """Axes flipped and swapped in the file, voxels the same in the world: the same matrix."""
    made = network(family="affine", kind="keypoints")
    fixed, moving = blobs((16, 15, 14), 1), blobs((14, 18, 16), 2)
    affine = np.diag([2.0, 1.5, 2.2, 1.0])
    affine[:3, 3] = (3, -8, 11)
    plain = estimate_matrix(made, fixed, np.diag([1.8, 2, 2, 1]), moving, affine)
    turned = nib.as_closest_canonical(nib.Nifti1Image(moving, affine))
    turned = turned.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert turned.shape == (16, 14, 18)
    other = estimate_matrix(made, fixed, np.diag([1.8, 2, 2, 1]), turned.get_fdata(), turned.affine)
    assert float((plain - torch.eye(4)).abs().max()) > 0.01
    torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)


def test_centres_of_mass_are_in_millimetres_and_empty_maps_have_none():
    maps = torch.zeros(1, 3, *GRID.shape)
    maps[0, 0, 3, 4, 5] = 2.0
    maps[0, 1] = -1.0
    maps[0, 2, 0, 0, 0] = maps[0, 2, -1, -1, -1] = 1.0
    points, mass = centres_of_mass(maps, GRID.frame.half_width)
    world = GRID.affine[:3, :3] @ [3, 4, 5] + GRID.affine[:3, 3]
    np.testing.assert_allclose(points[0, 0], world, atol=1e-9)
    np.testing.assert_allclose(points[0, 1:], 0, atol=1e-9)
    assert float(mass[0, 1]) == 0 < float(mass[0, 0])


class _Known(torch.nn.Module):
    """An estimator with the same result in every pass; it records its input."""

    def __init__(self, step: torch.Tensor) -> None:
        super().__init__()
        self.step = step
        self.seen: list[torch.Tensor] = []

    def forward(self, fixed, moving):
        self.seen.append(moving)
        return self.step.expand(len(fixed), 4, 4), None


@pytest.mark.parametrize("family", FAMILIES)
def test_each_pass_sees_the_original_image_warped_by_the_composed_matrix(family):
    parameters = torch.full((1, parameter_count(family)), 0.05, dtype=torch.float64)
    step = matrix_of(parameters, family, GRID.frame)
    made = network(family=family, passes=3)
    made.estimator = _Known(step)
    moving = image(seed=3)
    passes = made.cascade(torch.cat([image(), moving], 1))
    product = step @ step @ step
    if family == "rigid_anisotropic":  # isn't closed under composition: a member comes back
        parameters_of(passes[-1].matrix, family, GRID.frame)
        torch.testing.assert_close(passes[-1].matrix, product, rtol=0, atol=0.3)
    else:
        torch.testing.assert_close(passes[-1].matrix, product)
    for number, one in enumerate(passes):
        expected = resample_by_matrix(moving, GRID.affine, one.before, GRID.affine, GRID.shape)
        torch.testing.assert_close(made.estimator.seen[number], expected)


@pytest.mark.parametrize("passes", [0, -1])
def test_a_cascade_of_no_pass_is_refused(passes):
    with pytest.raises(ValueError, match="passes must be at least 1"):
        network(passes=passes)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        network().cascade(torch.zeros(1, 2, *GRID.shape), passes)


@pytest.mark.parametrize("shape", [(1, 2, 16, 18, 16), (1, 1, 16, 18, 17), (1, 2, 16, 18)])
def test_pairs_on_other_grids_are_refused(shape):
    with pytest.raises(ValueError, match="on the network's grid"):
        network()(torch.zeros(shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_nearest_member_keeps_members_and_the_loss_of_the_truth_is_zero(family):
    generator = torch.Generator().manual_seed(0)
    ranges = LearnedAffinePairsConfig.load({"rotation": 80})
    parameters = sample_parameters(3, family, 3, ranges, generator)
    matrix = matrix_of(parameters, family, GRID.frame)
    torch.testing.assert_close(nearest_member(matrix, family, GRID.frame), matrix)
    errors = matrix_errors(matrix, matrix, GRID.frame.half_width)
    assert all(float(value.max()) < 1e-5 for value in errors.values())


def test_errors_are_those_of_known_moves():
    half = GRID.frame.half_width
    turn = torch.zeros(1, 6, dtype=torch.float64)
    turn[0, 2], turn[0, 3] = np.radians(30), 3 / float(half[0])
    result = matrix_errors(matrix_of(turn, "rigid", GRID.frame), torch.eye(4)[None].double(), half)
    assert float(result["rotation_error"]) == pytest.approx(30)
    assert float(result["translation_error"]) == pytest.approx(3)
    points = (2 * torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) - 1) * half
    moved = points.double() @ matrix_of(turn, "rigid", GRID.frame)[0, :3, :3].T
    moved[:, 0] += 3
    sampled = (moved - points).square().sum(1).mean().sqrt()
    assert float(result["distance"]) == pytest.approx(float(sampled), rel=1e-2)


# --- pairs --------------------------------------------------------------------------------------


def pairs(family: str = "affine", grid: WorkingGrid = GRID, **settings) -> SyntheticPairs:
    given = {"rotation": 20, "translation": 0.15, "augmentations": [], **settings}
    return SyntheticPairs(grid, family, LearnedAffinePairsConfig.load(given), seed=3)


@pytest.mark.parametrize("grid", [GRID, PLANE], ids=["3d", "2d"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_brings_the_moving_image_to_the_fixed_one(family, grid):
    made = pairs(family, grid)(torch.cat([image(grid), image(grid, 2)]), (0, 1))
    torch.testing.assert_close(made.matrix, matrix_of(made.parameters, family, grid.frame))
    fixed, moving = made.clean[:, :1], made.clean[:, 1:]
    back = resample_by_matrix(moving, grid.affine, made.matrix, grid.affine, grid.shape)
    before = (moving - fixed).square().mean().sqrt()
    after = (back - fixed).square().mean().sqrt()
    assert float(after) < 0.35 * float(before)  # what is left is interpolation


def test_pairs_depend_on_seed_and_key_alone():
    made = pairs(augmentations=list(AUGMENTATIONS), warp=1.0, probability=0.7)
    images = torch.cat([image(), image(seed=2)])
    first, other, again = made(images, (0, 1)), made(images, (0, 2)), made(images, (0, 1))
    assert torch.equal(first.pair, again.pair)
    assert not torch.equal(first.pair, other.pair)
    assert not torch.equal(first.matrix, other.matrix)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("grid", [GRID, PLANE], ids=["3d", "2d"])
def test_every_augmentation_changes_both_images_independently(name, grid):
    maker = pairs(grid=grid, augmentations=[name], probability=1.0)
    changed = torch.zeros(2)
    for number in range(4):  # a hole may fall on background, a zoom may be by 1
        made = maker(image(grid), (0, number))
        assert made.pair.shape == made.clean.shape
        assert torch.isfinite(made.pair).all()
        assert float(made.pair.min()) >= 0 and float(made.pair.max()) <= 1
        assert torch.equal(made.clean, pairs(grid=grid)(image(grid), (0, number)).clean)
        changed += (made.pair - made.clean).abs().amax((0, *range(2, made.pair.dim())))
    assert bool((changed > 1e-3).all())
    assert float(changed[0]) != float(changed[1])


def test_a_constant_image_makes_no_nan():
    everything = pairs(augmentations=list(AUGMENTATIONS), probability=1.0)
    made = everything(torch.zeros(1, 1, *GRID.shape), (0, 0))
    assert torch.isfinite(made.pair).all()


# --- learning and use ---------------------------------------------------------------------------


def learned(kind: str, steps: int, lr: float) -> tuple[float, float]:
    """Mean distance of a network's matrices from the truth, mm, before and after some steps."""
    maker = pairs("rigid", WorkingGrid((24, 24), 2.0), rotation=30, pose=0.0)
    grid = maker.grid
    made, loss = network(grid, kind=kind, family="rigid", width=0.25), AffineLoss()
    optimizer = torch.optim.Adam(made.parameters(), lr=lr)
    images = image(grid).repeat(8, 1, 1, 1)

    def distance() -> float:
        test = maker(images, (1, 0))
        with torch.no_grad():
            errors = matrix_errors(made(test.pair), test.matrix, grid.frame.half_width)
        return float(errors["distance"].mean())

    before = distance()
    for step in range(steps):
        batch = maker(images, (0, step))
        optimizer.zero_grad()
        loss(made, made.cascade(batch.pair), batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    return before, distance()


@pytest.mark.parametrize(
    ("kind", "steps", "lr"), [("keypoints", 40, 3e-3), ("parameters", 80, 1e-3)]
)
def test_networks_learn(kind, steps, lr):
    before, after = learned(kind, steps, lr)
    assert after < 0.7 * before


def test_loss_asks_a_later_pass_for_what_the_earlier_ones_left():
    maker = pairs("affine")
    batch = maker(image(), (0, 0))
    made = network(family="affine", passes=2)
    passes = made.cascade(batch.pair)  # both the identity
    perfect = [
        type(one)(one.before, batch.matrix, batch.parameters, batch.matrix) for one in passes
    ]
    assert float(AffineLoss(1.0, 0.0)(made, perfect, batch)["loss"]) < 1e-12
    half = batch.parameters / 2
    before = matrix_of(half, "affine", made.frame)
    step = made.residual(batch.matrix, before)
    left = parameters_of(step, "affine", made.frame)
    second = type(passes[0])(before, step, left, batch.matrix)
    assert float(AffineLoss()(made, [perfect[0], second], batch)["loss"]) < 1e-12
    with_image = AffineLoss(0.0, 1.0)(made, perfect, batch)
    without = AffineLoss(0.0, 1.0)(made, passes, batch)
    assert float(with_image["loss"]) < 0.3 * float(without["loss"])


def test_a_world_matrix_relates_the_worlds_of_any_two_grids():
    """Identity network: volumes' centres are laid on each other, axes stay the world's."""
    made = network(family="rigid")
    fixed_affine, moving_affine = np.diag([2.0, 2, 2, 1]), np.diag([-1.5, 1.5, 2.5, 1])
    fixed_affine[:3, 3], moving_affine[:3, 3] = (5, -3, 8), (40, 2, -9)
    fixed, moving = blobs((14, 15, 16), 1), blobs((20, 18, 13), 2)
    result = estimate_matrix(made, fixed, fixed_affine, moving, moving_affine)
    centres = [
        affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + affine[:3, 3]
        for data, affine in ((fixed, fixed_affine), (moving, moving_affine))
    ]
    expected = np.eye(4)
    expected[:3, 3] = centres[1] - centres[0]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((9, 9, 9)), "the moving image is constant"),
        (np.full((9, 9, 9), np.nan), "the moving image is not finite"),
        (np.eye(9), "the moving image has 2 dimensions, the network has 3"),
    ],
)
def test_images_without_sense_are_refused(data, message):
    with pytest.raises(CohortError, match=message):
        estimate_matrix(network(), blobs((9, 9, 9), 1), np.eye(4), data, np.eye(4))


def test_corners_are_those_of_the_volume():
    corners = corner_points(PLANE.frame)
    np.testing.assert_allclose(corners.abs(), [[15.0, 12.0]] * 4)


def test_wrong_kinds_are_refused():
    with pytest.raises(ValueError, match="kind must be 'parameters' or 'keypoints'"):
        network(kind="points")
    with pytest.raises(ValueError, match="pair must be 'channels' or 'towers'"):
        network(pair="both")
    with pytest.raises(ValueError, match="backbone must be 'unet' or 'resnet'"):
        KeypointEstimator(GRID.frame, "rigid", backbone="vgg")


def test_a_rotation_beyond_ninety_degrees_is_given_as_one_and_the_same_matrix_comes_back():
    """A difficult case: its angles differ from the original ones, its matrix doesn't."""
    turned = torch.zeros(1, 6, dtype=torch.float64)
    turned[0, 1] = np.radians(130)  # about the middle axis, whose angle ends at 90
    matrix = matrix_of(turned, "rigid", GRID.frame)
    made = network(family="rigid")
    again = made.residual_parameters(matrix, torch.eye(4, dtype=torch.float64)[None])
    assert float(again[0, 1].abs()) <= np.pi / 2
    torch.testing.assert_close(matrix_of(again, "rigid", GRID.frame), matrix)
    errors = matrix_errors(matrix, torch.eye(4, dtype=torch.float64)[None], GRID.frame.half_width)
    assert float(errors["rotation_error"]) == pytest.approx(130)


@pytest.mark.parametrize("flip", [1.0, -1.0], ids=["same", "flipped"])
def test_rigid_is_rigid_between_oblique_anisotropic_grids(flip):
    """A rigid network's world matrix keeps distances, whatever the voxels."""
    made = network(family="rigid", kind="keypoints", backbone="resnet")
    angle = 0.4
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = oblique @ np.diag([flip * 1.0, 3.0, 1.7, 1.0])
    plain = np.diag([2.0, 1.0, 2.5, 1.0])
    matrix = estimate_matrix(made, blobs((20, 9, 14), 1), oblique, blobs((12, 22, 9), 2), plain)
    linear = matrix[:3, :3]
    torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(linear)) == pytest.approx(1)
