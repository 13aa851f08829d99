"""Our warp against MONAI's, and against what a shift must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp as MonaiWarp
from scipy.ndimage import map_coordinates

from scripts.spatial.warp import Warp, sampling_grid, warp

SHAPES = [(9, 7), (16, 16), (7, 9, 5), (8, 6, 10)]


def pair(shape: tuple[int, ...], batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A random image of two channels and a displacement that partly leaves the grid."""
    torch.manual_seed(len(shape))
    return torch.rand(batch, 2, *shape), 2 * torch.randn(batch, len(shape), *shape)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_values_are_monais(shape: tuple[int, ...], padding: str, mode: str) -> None:
    image, displacement = pair(shape)
    ours = Warp(mode, padding)(image, displacement)
    theirs = MonaiWarp(mode, padding)(image, displacement)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_are_monais(shape: tuple[int, ...], batch: int) -> None:
    image, displacement = pair(shape, batch)
    weight = torch.rand_like(image)
    gradients = []
    for layer in (Warp("bilinear", "border"), MonaiWarp("bilinear", "border")):
        inputs = image.clone().requires_grad_(True), displacement.clone().requires_grad_(True)
        (layer(*inputs) * weight).sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_each_channel_moves_along_its_own_axis(shape: tuple[int, ...]) -> None:
    """out(x) = image(x + u(x)), with scipy's sampling in voxels as the judge."""
    image, displacement = pair(shape)
    points = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    there = points + displacement[0].numpy()
    expected = [map_coordinates(c, there, order=1, mode="nearest") for c in image[0].numpy()]
    found = warp(image, displacement, padding_mode="border")[0]
    np.testing.assert_allclose(found, np.stack(expected), atol=3e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 2, 0), (0, 0, -1), (-2, 1, 3)])
def test_whole_voxel_shifts_are_exact(shift: tuple[int, ...]) -> None:
    shape = (7, 8, 9)
    image = torch.rand(1, 1, *shape)
    displacement = torch.tensor(shift, dtype=torch.float32).view(1, 3, 1, 1, 1)
    shifted = warp(image, displacement.expand(1, 3, *shape))
    inner = tuple(slice(3, n - 3) for n in shape)
    moved = tuple(slice(3 + s, n - 3 + s) for s, n in zip(shift, shape, strict=True))
    torch.testing.assert_close(shifted[0, 0][inner], image[0, 0][moved], atol=1e-5, rtol=0)


def test_zeros_outside_and_border_outside() -> None:
    image = torch.ones(1, 1, 5, 5, 5)
    out = torch.full((1, 3, 5, 5, 5), 50.0)
    assert warp(image, out, padding_mode="zeros").abs().max() == 0
    assert warp(image, out, padding_mode="border").min() == 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are to stay constants
@pytest.mark.parametrize("shape", [*SHAPES, (1, 4, 3), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recorded_program_samples_at_the_same_points(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    displacement = torch.randn(2, len(shape), *shape, dtype=dtype)
    traced = torch.jit.trace(sampling_grid, displacement)
    other = torch.randn_like(displacement)
    torch.testing.assert_close(traced(other), sampling_grid(other), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3), (3, 2, 4)])
def test_the_gradient_of_the_points_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    displacement = torch.randn(2, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sampling_grid, displacement)


@pytest.mark.usefixtures("threads")
def test_a_batch_is_its_entries_one_by_one() -> None:
    image, displacement = pair((7, 9, 5), batch=3)
    together = warp(image, displacement)
    alone = [warp(image[b : b + 1], displacement[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_many_shapes_in_turn_leave_each_result_right() -> None:
    """Kept grids are evicted and made again; a wrong key would mix them up."""
    for size in [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 5, 6]:
        image = torch.rand(1, 1, size, 5, 4)
        zero = torch.zeros(1, 3, size, 5, 4)
        torch.testing.assert_close(warp(image, zero), image, atol=1e-5, rtol=0)


def test_an_axis_of_one_voxel_is_constant() -> None:
    """MONAI's divides by zero there; a volume of two slices has such a reduced grid."""
    image, displacement = pair((6, 7, 1))
    flat = warp(image[..., 0], displacement[:, :2, ..., 0], padding_mode="border")
    torch.testing.assert_close(
        warp(image, displacement, padding_mode="border")[..., 0], flat, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("mode", "padding", "message"),
    [
        ("linear", "zeros", "mode is 'bilinear' or 'nearest', not 'linear'"),
        ("trilinear", "border", "not 'trilinear'"),
        ("bilinear", "zero", "padding_mode is 'zeros' or 'border', not 'zero'"),
        ("bilinear", "reflection", "not 'reflection'"),
    ],
)
def test_misspelt_modes_are_errors(mode: str, padding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Warp(mode, padding)
