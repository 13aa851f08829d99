"""Properties of the four families, on grids that are anisotropic, oblique and flipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.spatial.affine_parameters import (
    FAMILIES,
    Frame,
    compose,
    invert,
    matrix_of,
    parameter_count,
    parameter_names,
    parameters_of,
)


def oblique(spacing: tuple[float, float, float], flip: bool = False) -> np.ndarray:
    """An affine turned about all axes, with an origin far away."""
    a, b, c = 0.3, -0.5, 0.8
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
    affine[:3, :3] *= spacing
    affine[:3, 3] = (90.0, -126.0, -72.0)
    return affine


GRIDS = {
    "cube": (np.eye(4), (16, 16, 16)),
    "anisotropic": (np.diag([1.0, 2.0, 5.0, 1.0]), (20, 14, 6)),
    "oblique": (oblique((0.7, 1.3, 4.0)), (31, 12, 9)),
    "flipped": (oblique((2.0, 1.0, 3.0), flip=True), (10, 24, 8)),
    "plane": (np.diag([1.0, 3.0, 1.0, 1.0]), (20, 9)),
    "oblique plane": (oblique((0.5, 2.0, 1.0)), (33, 8)),
}
each_grid = pytest.mark.parametrize("name", GRIDS)
each_family = pytest.mark.parametrize("family", FAMILIES)


def frame_of(name: str) -> Frame:
    return Frame.of_grid(*GRIDS[name])


def drawn(family: str, frame: Frame, count: int = 5, size: float = 0.4) -> torch.Tensor:
    made = torch.Generator().manual_seed(7)
    parameters = torch.rand(
        count, parameter_count(family, frame.spatial_dims), generator=made, dtype=torch.float64
    )
    return (2 * parameters - 1) * size


@each_grid
@each_family
def test_zeros_are_the_identity(name: str, family: str) -> None:
    frame = frame_of(name)
    zeros = torch.zeros(2, parameter_count(family, frame.spatial_dims))
    identity = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    torch.testing.assert_close(matrix_of(zeros, family, frame), identity, atol=1e-12, rtol=0)


@each_grid
def test_rigid_keeps_every_distance_in_millimetres(name: str) -> None:
    affine, shape = GRIDS[name]
    matrix = matrix_of(drawn("rigid", frame_of(name)), "rigid", frame_of(name))
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in (*shape, 1)[:3]]), -1).reshape(-1, 3)
    points = torch.from_numpy(corners @ affine[:3, :3].T + affine[:3, 3])
    moved = torch.einsum("bij,nj->bni", matrix[:, :3, :3], points) + matrix[:, None, :3, 3]
    torch.testing.assert_close(
        torch.cdist(moved, moved), torch.cdist(points, points).expand(5, 8, 8)
    )
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(5, dtype=torch.float64))


@each_grid
def test_isotropic_scale_scales_every_distance_alike(name: str) -> None:
    frame = frame_of(name)
    parameters = drawn("rigid_isotropic", frame)
    matrix = matrix_of(parameters, "rigid_isotropic", frame)
    d = frame.spatial_dims
    sizes = torch.linalg.svdvals(frame.axes.T @ matrix[:, :3, :3] @ frame.axes)
    wanted = torch.ones(5, 3, dtype=torch.float64)
    wanted[:, :d] = 1 + parameters[:, -1:]
    torch.testing.assert_close(sizes, wanted.sort(dim=1, descending=True).values)


@each_grid
@each_family
def test_the_centre_moves_by_the_translation_alone(name: str, family: str) -> None:
    affine, shape = GRIDS[name]
    frame = frame_of(name)
    d = frame.spatial_dims
    turns = 3 if d == 3 else 1
    parameters = drawn(family, frame)
    matrix = matrix_of(parameters, family, frame)
    moved = matrix[:, :3, :3] @ frame.centre + matrix[:, :3, 3] - frame.centre
    # A translation of 1 is half the image's width, along the image's own axis.
    steps = torch.from_numpy(affine[:3, :d] * np.array(shape) / 2)
    torch.testing.assert_close(moved, parameters[:, turns : turns + d] @ steps.T)


def test_order_of_composition_is_the_documented_one() -> None:
    frame = frame_of("anisotropic")
    parameters = drawn("affine", frame, 1)
    r, t, s, h = parameters[0].split([3, 3, 3, 3])

    def turn(axis: int, angle: torch.Tensor) -> torch.Tensor:
        cross = torch.zeros(3, 3, dtype=torch.float64)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        cross[i, j], cross[j, i] = -angle, angle
        return torch.linalg.matrix_exp(cross)

    shear = torch.eye(3, dtype=torch.float64)
    shear[0, 1], shear[0, 2], shear[1, 2] = h
    linear = turn(2, r[2]) @ turn(1, r[1]) @ turn(0, r[0]) @ shear @ torch.diag(1 + s)
    q = torch.tensor([3.0, -2.0, 7.0], dtype=torch.float64)
    matrix = matrix_of(parameters, "affine", frame)[0]
    result = matrix[:3, :3] @ (q + frame.centre) + matrix[:3, 3] - frame.centre
    torch.testing.assert_close(result, linear @ q + t * frame.half_width)


@each_grid
@each_family
def test_parameters_come_back(name: str, family: str) -> None:
    frame = frame_of(name)
    parameters = drawn(family, frame)
    result = parameters_of(matrix_of(parameters, family, frame), family, frame)
    torch.testing.assert_close(result, parameters, atol=1e-9, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=3))
def test_any_rotation_comes_back_as_the_same_matrix(angles: list[float]) -> None:
    frame = frame_of("oblique")
    parameters = torch.tensor([[*angles, 0.1, 0.2, -0.3]], dtype=torch.float64)
    matrix = matrix_of(parameters, "rigid", frame)
    again = matrix_of(parameters_of(matrix, "rigid", frame), "rigid", frame)
    torch.testing.assert_close(again, matrix, atol=1e-7, rtol=0)


@pytest.mark.parametrize("angle", [np.pi / 2, -np.pi / 2])
def test_locked_euler_axes_come_back_as_the_same_matrix(angle: float) -> None:
    frame = frame_of("anisotropic")
    parameters = torch.tensor([[0.4, angle, -1.1, 0.0, 0.0, 0.0]], dtype=torch.float64)
    matrix = matrix_of(parameters, "rigid", frame)
    result = parameters_of(matrix, "rigid", frame)
    torch.testing.assert_close(matrix_of(result, "rigid", frame), matrix, atol=1e-7, rtol=0)


@pytest.mark.parametrize("degrees", [120.0, 179.0])
@pytest.mark.parametrize("axis", [0, 2])
def test_rotations_over_ninety_degrees_come_back(degrees: float, axis: int) -> None:
    frame = frame_of("oblique")
    parameters = torch.zeros(1, 6, dtype=torch.float64)
    parameters[0, axis] = np.deg2rad(degrees)
    matrix = matrix_of(parameters, "rigid", frame)
    assert torch.allclose(parameters_of(matrix, "rigid", frame), parameters, atol=1e-9)


@each_family
def test_families_are_nested(family: str) -> None:
    frame = frame_of("flipped")
    rigid = matrix_of(drawn("rigid", frame), "rigid", frame)
    result = parameters_of(rigid, family, frame)
    torch.testing.assert_close(matrix_of(result, family, frame), rigid)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_a_matrix_outside_of_a_family_has_no_parameters_there(family: str) -> None:
    frame = frame_of("oblique")
    matrix = matrix_of(drawn("affine", frame), "affine", frame)
    with pytest.raises(ValueError, match=f"isn't in the transform model {family}"):
        parameters_of(matrix, family, frame)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.diag(torch.tensor([-1.0, 1, 1, 1])), "mirrors or collapses"),
        (torch.diag(torch.tensor([0.0, 1, 1, 1])), "mirrors or collapses"),
        (torch.full((4, 4), torch.nan), "isn't finite"),
        (torch.ones(4, 4), "isn't an affine transform"),
    ],
)
def test_matrices_without_parameters_are_refused(matrix: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters_of(matrix[None], "affine", frame_of("cube"))


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.full((4, 4), torch.inf)])
def test_a_singular_matrix_has_no_inverse(matrix: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="can't be inverted"):
        invert(matrix)


def test_composition_applies_the_first_one_first_and_inverses_undo() -> None:
    frame = frame_of("oblique")
    first, second = matrix_of(drawn("affine", frame, 2), "affine", frame)
    point = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(compose(first, second) @ point, second @ (first @ point))
    identity = torch.eye(4, dtype=torch.float64)
    there_and_back = compose(first, second, invert(second), invert(first))
    torch.testing.assert_close(there_and_back, identity, atol=1e-9, rtol=0)


@each_family
def test_gradients_are_those_of_differences(family: str) -> None:
    frame = frame_of("oblique")
    parameters = drawn(family, frame, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: matrix_of(p, family, frame), parameters)


def test_counts_and_names() -> None:
    assert [parameter_count(f, 3) for f in FAMILIES] == [6, 7, 9, 12]
    assert [parameter_count(f, 2) for f in FAMILIES] == [3, 4, 5, 6]
    assert parameter_names("affine", 2)[-1] == "shear_xy"
    with pytest.raises(ValueError, match="family must be one of"):
        parameter_names("projective")
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3"):
        parameter_names("rigid", 4)
    with pytest.raises(ValueError, match=r"parameters \(B, 6\), got \(1, 7\)"):
        matrix_of(torch.zeros(1, 7), "rigid", frame_of("cube"))


def test_a_frame_needs_a_grid() -> None:
    with pytest.raises(ValueError, match="can't be inverted"):
        Frame.of_grid(np.diag([1.0, 0.0, 1.0, 1.0]), (4, 4, 4))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        Frame.of_grid(np.eye(4), (4, 4, 4, 4))
