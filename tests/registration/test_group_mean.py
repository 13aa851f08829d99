"""The mean transform: invariances that define it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from scripts.registration.group_mean import group_mean, log_of
from scripts.spatial.affine_parameters import Frame, matrix_of

FRAME = Frame.of_grid(np.diag([1.0, 2.0, 1.5, 1.0]), (20, 16, 12))


def transforms(count: int = 5, size: float = 0.5) -> np.ndarray:
    drawn = torch.rand(count, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return matrix_of((2 * drawn - 1) * size, "affine", FRAME).numpy()


def test_centred_transforms_have_the_identity_as_their_mean() -> None:
    matrices = transforms()
    centred = matrices @ np.linalg.inv(group_mean(matrices))
    np.testing.assert_allclose(group_mean(centred), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(np.mean([log_of(m) for m in centred], axis=0), 0, atol=1e-9)


def test_it_commutes_with_composition_on_both_sides_and_with_inversion() -> None:
    matrices, (left, right) = transforms(), transforms(7)[-2:]
    mean = group_mean(matrices)
    np.testing.assert_allclose(group_mean(left @ matrices @ right), left @ mean @ right, atol=1e-8)
    np.testing.assert_allclose(group_mean(np.linalg.inv(matrices)), np.linalg.inv(mean), atol=1e-8)


def test_the_mean_of_two_rotations_is_half_way() -> None:
    rates = np.zeros((4, 4))
    rates[0, 1], rates[1, 0] = -1.0, 1.0
    mean = group_mean([expm(0.2 * rates), expm(1.0 * rates)])
    np.testing.assert_allclose(mean, expm(0.6 * rates), atol=1e-10)


def test_one_transform_is_its_own_mean() -> None:
    (one,) = transforms(1)
    np.testing.assert_allclose(group_mean([one]), one, atol=1e-10)


def test_logarithms_are_scipys_and_the_same_every_time() -> None:
    """SciPy's logarithm draws random numbers: an alignment wouldn't repeat bit for bit."""
    generator = np.random.default_rng(5)
    for _ in range(10):
        velocity = np.zeros((4, 4))
        velocity[:3] = 0.4 * generator.normal(size=(3, 4))
        velocity[:3, 3] *= 60
        np.testing.assert_allclose(log_of(expm(velocity)), velocity, atol=1e-11)
    shift = np.eye(4)
    shift[0, 3] = 1e4
    np.testing.assert_allclose(log_of(shift), shift - np.eye(4), atol=1e-9)
    generator, many = np.random.default_rng(4), []
    for _ in range(3):
        velocity = 0.3 * generator.normal(size=(4, 4))
        velocity[3] = 0
        many.append(expm(velocity))
    result = set()
    for seed in range(6):  # six different means by SciPy's logarithm
        np.random.seed(seed)  # noqa: NPY002 - the generator that SciPy draws from
        result.add(group_mean(many).tobytes())
    assert len(result) == 1


@pytest.mark.parametrize("diagonal", [(-1.0, -1.0, 1.0, 1.0), (-1.0, 1.0, 1.0, 1.0)])
def test_half_turns_and_mirrors_have_no_logarithm(diagonal: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="logarithm"):
        group_mean([np.eye(4), np.diag(diagonal)])
