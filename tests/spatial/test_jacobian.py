"""Determinants of linear maps in closed form, and folds that must be found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scripts.spatial.jacobian import (
    jacobian_determinant,
    jacobian_summary,
    smallest_corner_determinant,
)

MATRICES = {
    "2d": np.array([[0.1, 0.3], [-0.2, -0.15]]),
    "3d": np.array([[0.1, 0.3, -0.1], [-0.2, -0.15, 0.05], [0.25, 0.0, 0.2]]),
    "mirror": np.diag([-2.0, 0.0, 0.0]),
}


def linear(matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    mesh = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(float)
    return torch.tensor(np.tensordot(matrix, mesh, axes=1))


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
def test_a_linear_map_has_its_matrixs_determinant_everywhere(matrix: np.ndarray) -> None:
    shape = (6, 5, 7)[: len(matrix)]
    displacement = linear(matrix, shape)
    expected = np.linalg.det(np.eye(len(matrix)) + matrix)
    central, corner = jacobian_determinant(displacement), smallest_corner_determinant(displacement)
    assert central.shape == shape
    assert corner.shape == tuple(n - 1 for n in shape)
    np.testing.assert_allclose(central.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(corner.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_no_displacement_keeps_every_volume(d: int) -> None:
    summary = jacobian_summary(torch.zeros(d, *([4] * d)))
    assert summary == {
        "min": 1.0, "share_folded": 0.0, "corner_min": 1.0, "corner_share_folded": 0.0,
    }  # fmt: skip


def test_corners_are_numpys_determinants_of_the_three_edges() -> None:
    u = torch.randn(3, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = smallest_corner_determinant(u).numpy()
    for cell in itertools.product(range(2), range(3), range(2)):
        dets = []
        for corner in itertools.product((0, 1), repeat=3):
            here = np.array(cell) + corner
            matrix = np.eye(3)
            for axis in range(3):
                low, high = here.copy(), here.copy()
                low[axis], high[axis] = cell[axis], cell[axis] + 1
                matrix[:, axis] += (u[(slice(None), *high)] - u[(slice(None), *low)]).numpy()
            dets.append(np.linalg.det(matrix))
        assert result[cell] == pytest.approx(min(dets))


@pytest.mark.parametrize("d", [2, 3])
def test_a_fold_is_found_where_it_is(d: int) -> None:
    """Two planes of points swap places."""
    displacement = torch.zeros(d, *([9] * d))
    displacement[0, 4], displacement[0, 5] = 3.0, -3.0
    det = jacobian_determinant(displacement)
    assert float(det.min()) < 0
    folded = torch.nonzero((det <= 0).flatten(1).any(1)).flatten().tolist()
    assert set(folded) <= {4, 5}
    assert folded
    summary = jacobian_summary(displacement)
    assert summary["min"] < 0
    assert summary["corner_min"] == pytest.approx(-5.0)
    assert summary["share_folded"] == pytest.approx(len(folded) / 9)
    assert summary["corner_share_folded"] == pytest.approx(1 / 8)


@pytest.mark.parametrize("d", [2, 3])
def test_a_checkerboard_fold_hides_from_central_differences_alone(d: int) -> None:
    signs = torch.tensor([0.75, -0.75]).repeat(4)
    displacement = torch.zeros(d, *([8] * d))
    displacement[0] = signs.view(-1, *([1] * (d - 1)))
    inner = jacobian_determinant(displacement)[1:-1]
    assert float(inner.min()) == 1  # nothing to see
    corner = smallest_corner_determinant(displacement)
    assert float(corner.min()) == pytest.approx(1 - 1.5)
    assert jacobian_summary(displacement)["corner_share_folded"] > 0.4


def test_world_units_do_not_matter() -> None:
    """det of A (I + du/dx) A^-1 for an oblique anisotropic affine, built voxel by voxel."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = rotation @ np.diag([1.0, 2.5, 0.7])
    u = torch.tensor(0.2 * rng.normal(size=(3, 5, 6, 4)))
    gradients = np.stack([np.stack(np.gradient(component.numpy())) for component in u])
    jacobian = np.moveaxis(gradients, (0, 1), (-2, -1)) + np.eye(3)
    world = affine @ jacobian @ np.linalg.inv(affine)
    np.testing.assert_allclose(jacobian_determinant(u).numpy(), np.linalg.det(world), atol=1e-10)


def test_a_zero_determinant_counts_as_folded() -> None:
    collapsed = linear(np.diag([-1.0, 0.0]), (5, 5))
    summary = jacobian_summary(collapsed)
    assert summary["share_folded"] == summary["corner_share_folded"] == 1


@pytest.mark.parametrize("d", [2, 3])
def test_the_summary_is_the_same_in_slabs_of_any_size(
    d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the determinants of the whole field; one plane a slab up to all in one."""
    generator = torch.Generator().manual_seed(0)
    u = 0.4 * torch.randn(d, 7, *([5] * (d - 1)), dtype=torch.float64, generator=generator)
    central, corner = jacobian_determinant(u), smallest_corner_determinant(u)
    for planes in range(1, 9):
        monkeypatch.setattr("scripts.spatial.jacobian._SLAB", planes * 5 ** (d - 1))
        assert jacobian_summary(u) == pytest.approx(
            {
                "min": float(central.min()),
                "share_folded": float((central <= 0).double().mean()),
                "corner_min": float(corner.min()),
                "corner_share_folded": float((corner <= 0).double().mean()),
            },
            rel=1e-12,
        )


def test_a_value_that_is_no_number_is_not_lost_among_the_slabs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scripts.spatial.jacobian._SLAB", 1)
    u = torch.zeros(3, 6, 4, 4)
    u[1, 2, 1, 1] = float("nan")
    summary = jacobian_summary(u)
    assert np.isnan(summary["min"])
    assert np.isnan(summary["corner_min"])
