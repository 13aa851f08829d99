"""Pairs with known transforms, and properties that hold for any images."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.phantom.serial_sections import SerialSections
from scripts.stack.objective import LOSSES, Objective
from scripts.stack.pair import PairRegistration, Schedule
from scripts.stack.planar import PlanarModel, Plane, corner_distance
from scripts.stack.pyramid import Pyramid, usable_levels
from scripts.stack.search import MIRROR

SHAPE = (64, 96)
PLANE = Plane(SHAPE, (1.0, 1.0))
REDUCTIONS = (2, 1)
SCHEDULE = Schedule(REDUCTIONS, (100,) * 2, (2e-3, 5e-4))


def organ(matrix: np.ndarray, plane: Plane = PLANE, seed: int = 0) -> np.ndarray:
    """What a section shows whose point q is the organ's matrix^-1 q: no interpolation."""
    sections = SerialSections(1, plane.shape, seed=seed)
    back = plane.pixel_matrix(np.linalg.inv(matrix))
    down, across = np.mgrid[: plane.shape[0], : plane.shape[1]].astype(float)
    y = back[0, 0] * down + back[0, 1] * across + back[0, 2]
    x = back[1, 0] * down + back[1, 1] * across + back[1, 2]
    return sections._organ(0.0, y, x).astype(np.float32)


def pyramid(image: np.ndarray, plane: Plane = PLANE) -> Pyramid:
    return Pyramid(image, plane, REDUCTIONS)


def known(transformation: str, seed: int = 1) -> tuple[PlanarModel, np.ndarray]:
    model = PlanarModel(transformation)
    values = np.random.default_rng(seed).normal(0, 0.03, model.count)
    values[:3] = 0.05, 0.08, -0.06
    return model, model.matrix(values, PLANE)


@pytest.mark.parametrize("transformation", ["rigid", "similarity", "affine"])
def test_a_known_transform_is_found(transformation: str) -> None:
    model, truth = known(transformation)
    registration = PairRegistration(model, Objective(), SCHEDULE, regularisation=0)
    result = registration(pyramid(organ(np.eye(3))), pyramid(organ(truth)))
    assert corner_distance(result.matrix, truth, PLANE) < 0.15
    assert result.correlation > 0.99 > result.correlation_before


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_finds_it(loss: str) -> None:
    model, truth = known("rigid")
    result = PairRegistration(model, Objective(loss), SCHEDULE)(
        pyramid(organ(np.eye(3))), pyramid(organ(truth))
    )
    assert corner_distance(result.matrix, truth, PLANE) < 0.15


def test_adam_ends_at_the_same_minimum() -> None:
    model, truth = known("rigid")
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))
    ends = [
        PairRegistration(model, Objective(), SCHEDULE, optimizer=one)(*sections).matrix
        for one in ("gauss_newton", "adam")
    ]
    assert corner_distance(*ends, PLANE) < 0.1


def test_a_random_start_is_the_seeds_and_moves_active_parameters_alone() -> None:
    _, truth = known("rigid")
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))
    model = PlanarModel("affine", scaling=False, shear=False)

    def run(seed: int) -> np.ndarray:
        short = Schedule(REDUCTIONS, (5,) * 2, (1e-3,) * 2)
        return PairRegistration(
            model, Objective(), short, optimizer="adam", init_std=0.01, seed=seed
        )(*sections).matrix

    assert np.array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))
    # No scale and no shear was drawn: what is left is a rotation to the last bit.
    np.testing.assert_allclose(np.linalg.svd(run(0)[:2, :2])[1], 1, atol=1e-15)


def test_rigid_is_rigid_in_millimetres_on_anisotropic_pixels() -> None:
    plane = Plane(SHAPE, (3.0, 1.0))
    model = PlanarModel("rigid")
    truth = model.matrix(np.array([0.1, 0.05, 0.02]), plane)
    result = PairRegistration(model, Objective(), SCHEDULE)(
        pyramid(organ(np.eye(3), plane), plane), pyramid(organ(truth, plane), plane)
    )
    assert np.abs(np.linalg.svd(result.matrix[:2, :2])[1] - 1).max() < 1e-9
    assert corner_distance(result.matrix, truth, plane) < 0.3


@pytest.mark.parametrize("optimizer", ["gauss_newton", "adam"])
def test_a_copy_gets_the_exact_identity(optimizer: str) -> None:
    image = organ(np.eye(3))
    result = PairRegistration(PlanarModel("affine"), Objective(), SCHEDULE, optimizer=optimizer)(
        pyramid(image), pyramid(image.copy())
    )
    assert np.array_equal(result.matrix, np.eye(3))
    assert result.loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_result_is_never_worse_than_the_identity(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (pyramid(random.random(SHAPE).astype(np.float32)) for _ in range(2))
    result = PairRegistration(PlanarModel("affine"), Objective(), SCHEDULE)(one, other)
    still = Objective()(one[1], other[1], np.eye(3))
    assert result.loss <= still.loss
    assert result.overlap >= 0.25


def test_unknown_orientation_is_searched() -> None:
    model = PlanarModel("rigid")
    truth = model.matrix(np.array([2.5, 0.05, -0.04]), PLANE)
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))
    lost = PairRegistration(model, Objective(), SCHEDULE)(*sections)
    assert corner_distance(lost.matrix, truth, PLANE) > 20
    result = PairRegistration(model, Objective(), SCHEDULE, search_angle=180)(*sections)
    assert corner_distance(result.matrix, truth, PLANE) < 0.2


def test_a_section_turned_over_is_found_with_flips_only() -> None:
    model = PlanarModel("rigid")
    truth = model.matrix(np.array([0.05, 0.05, -0.04]), PLANE) @ MIRROR
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))
    plain = PairRegistration(model, Objective(), SCHEDULE)(*sections)
    assert not plain.mirrored
    result = PairRegistration(model, Objective(), SCHEDULE, flips=True)(*sections)
    assert result.mirrored
    assert corner_distance(result.matrix, truth, PLANE) < 0.2


def test_regularisation_holds_scale_and_shear_back() -> None:
    model, truth = known("affine")
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))

    def deviation(weight: float) -> float:
        result = PairRegistration(model, Objective(), SCHEDULE, weight)(*sections)
        return float(np.abs(model.parameters(result.matrix, PLANE)[3:]).sum())

    assert deviation(100.0) < 0.1 * deviation(0.0)


def test_small_levels_are_left_out_and_count_no_steps() -> None:
    assert usable_levels((60, 200), (8, 4, 2, 1)) == [2, 3]
    assert usable_levels((20, 20), (8, 4, 2, 1)) == [3]
    model, truth = known("rigid")
    schedule = Schedule((8, 2, 1), (100,) * 3, (1e-3,) * 3)
    images = [Pyramid(organ(one), PLANE, (8, 2, 1)) for one in (np.eye(3), truth)]
    result = PairRegistration(model, Objective(), schedule)(*images)
    assert result.steps[0] == 0 < min(result.steps[1:])


def test_adam_stops_once_the_loss_stays_the_same() -> None:
    model, truth = known("rigid")
    sections = pyramid(organ(np.eye(3))), pyramid(organ(truth))

    def steps(**options: object) -> tuple[int, ...]:
        schedule = Schedule(REDUCTIONS, (20,) * 2, (1e-3, 1e-4), **options)
        return PairRegistration(model, Objective(), schedule, optimizer="adam")(*sections).steps

    assert steps(early_stopping=False) == (20, 20)
    assert all(n == 15 for n in steps(tolerance=10.0))
