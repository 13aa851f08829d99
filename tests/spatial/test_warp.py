"""Our warp against MONAI's, and against what a shift must do."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.config.deviceconfig import USE_COMPILED
from monai.networks.blocks import Warp as MonaiWarp
from monai.utils import GridSampleMode, GridSamplePadMode
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
    result = warp(image, displacement, padding_mode="border")[0]
    np.testing.assert_allclose(result, np.stack(expected), atol=3e-5)


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
        ("linear", "zeros", "mode must be 'bilinear', 'nearest' or 'bicubic', .* got 'linear'"),
        ("trilinear", "border", "got 'trilinear'"),
        (
            "bilinear",
            "zero",
            "padding_mode must be 'zeros', 'border' or 'reflection', .* got 'zero'",
        ),
        (GridSamplePadMode.BORDER, "zeros", "got .*border"),
        (8, "zeros", "mode must be .* got 8"),
        (-1, "zeros", "got -1"),
        (True, "zeros", "got True"),
        ("bilinear", 6, "padding_mode must be .* got 6"),
        (None, "zeros", "got None"),
    ],
)
def test_misspelt_modes_are_errors(mode: Any, padding: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Warp(mode, padding)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [*SHAPES, (6, 1, 5)])
@pytest.mark.parametrize("padding", list(GridSamplePadMode))
@pytest.mark.parametrize("mode", list(GridSampleMode))
def test_every_mode_of_monais_gives_monais_numbers(
    shape: tuple[int, ...], padding: GridSamplePadMode, mode: GridSampleMode
) -> None:
    if mode == GridSampleMode.BICUBIC and len(shape) == 3:
        pytest.skip("PyTorch has no bicubic for volumes, so that MONAI's has none either")
    image, displacement = pair(shape)
    theirs = MonaiWarp(mode.value, padding.value)(image, displacement)
    ours = Warp(mode, padding)(image, displacement)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert torch.equal(ours, Warp(mode.value, padding.value)(image, displacement))


@pytest.mark.parametrize("mode", list(GridSampleMode))
@pytest.mark.parametrize("padding", list(GridSamplePadMode))
def test_the_gradient_of_every_mode_is_that_of_finite_differences(
    mode: GridSampleMode, padding: GridSamplePadMode
) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    displacement = 2 * torch.rand(2, 2, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(Warp(mode, padding), (image, displacement))


def test_reflection_is_about_the_centres_of_the_outermost_voxels() -> None:
    line = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 3)
    back = torch.zeros(1, 2, 4, 3)
    back[:, 0] = -2
    result = Warp("nearest", "reflection")(line, back)[0, 0, :, 0]
    assert result.tolist() == [2, 1, 0, 1]


def test_bicubic_keeps_a_parabola_inside_a_plane() -> None:
    """Keys's kernel of a = -3/4, PyTorch's, hits a parabola at the voxels, and a line anywhere."""
    x = torch.arange(9.0, dtype=torch.float64).view(1, 1, 9, 1).expand(1, 1, 9, 9)
    half = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    half[:, 0] = 0.5
    inner = slice(2, 6)
    moved = Warp("bicubic", "border")(x, half)[0, 0, inner, 4]
    torch.testing.assert_close(moved, x[0, 0, inner, 4] + 0.5)
    square = Warp("bicubic", "border")(x**2, 2 * half)[0, 0, inner, 4]
    torch.testing.assert_close(square, (x[0, 0, inner, 4] + 1) ** 2)
    bent = Warp("bicubic", "border")(x**2, half)[0, 0, inner, 4]
    linear = Warp("bilinear", "border")(x**2, half)[0, 0, inner, 4]
    assert (bent < linear).all()  # it bends, as lines can't


def test_bicubic_is_no_mode_for_volumes() -> None:
    with pytest.raises(ValueError, match=r"works on planes only.*\(1, 2, 7, 9, 5\)"):
        Warp("bicubic")(*pair((7, 9, 5)))


@pytest.mark.parametrize(
    ("number", "name", "padding_number", "padding"),
    [(0, "nearest", 7, "zeros"), (1, "bilinear", 0, "border"), (1, "bilinear", 1, "reflection")],
)
def test_numbers_of_modes_that_pytorch_has_need_no_extension(
    number: int, name: str, padding_number: int, padding: str
) -> None:
    image, displacement = pair((7, 9, 5))
    layer = Warp(number, padding_number)
    assert torch.equal(layer(image, displacement), Warp(name, padding)(image, displacement))
    assert layer.arguments == Warp(name, padding).arguments


@pytest.mark.parametrize(("mode", "padding"), [(2, "zeros"), (7, "border"), ("bilinear", 5)])
def test_other_numbers_say_that_they_need_the_extension(mode: Any, padding: Any) -> None:
    if USE_COMPILED:
        pytest.skip("MONAI's C++ extension is in use")
    with pytest.raises(ValueError, match=r"needs MONAI's C\+\+ extension.*BUILD_MONAI=1"):
        Warp(mode, padding)


@pytest.mark.parametrize(
    ("mode", "padding", "order", "bound"),
    [(3, "reflection", 3, 1), ("bilinear", 4, 1, 4), (2, GridSamplePadMode.ZEROS, 2, 7)],
)
def test_with_the_extension_they_go_to_its_grid_pull(
    monkeypatch: pytest.MonkeyPatch, mode: Any, padding: Any, order: int, bound: int
) -> None:
    """A stand-in takes the call, since the extension is seldom built."""
    calls = []

    def grid_pull(image: torch.Tensor, grid: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append((grid, options))
        return image

    monkeypatch.setattr("scripts.spatial.warp.USE_COMPILED", True)
    monkeypatch.setattr("monai.networks.blocks.warp.USE_COMPILED", True)
    monkeypatch.setattr("scripts.spatial.warp.grid_pull", grid_pull)
    image, displacement = pair((7, 9, 5))
    layer = Warp(mode, padding)
    assert torch.equal(layer(image, displacement), image)
    [(grid, options)] = calls
    assert options == {"interpolation": order, "bound": bound, "extrapolate": True}
    at = (0, 3, 4, 2)
    torch.testing.assert_close(grid[at], torch.tensor([3.0, 4, 2]) + displacement[0][:, 3, 4, 2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_is_monais(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    image, displacement = (x.to(dtype) for x in pair(shape))
    before = torch.get_rng_state()
    ours = Warp("bilinear", "border", jitter=True)(image, displacement)
    assert torch.equal(torch.get_rng_state(), before)
    theirs = MonaiWarp("bilinear", "border", jitter=True)(image, displacement)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    still = Warp("bilinear", "border")(image, displacement)
    assert (ours - still).abs().max() > 0.1


@pytest.mark.parametrize(
    ("image", "displacement"),
    [
        ((1, 1, 1, 2, 2), (1, 2, 2, 2)),  # an axis of the image has no displacement
        ((1, 1, 2, 2), (1, 2, 1, 2, 2)),  # an axis of the displacement has no image
        ((1, 1, 2, 2), (1, 2, 3, 3)),  # another grid
        ((1, 1, 2, 2), (1, 3, 2, 2)),  # three components in a plane
        ((2, 1, 2, 2), (1, 2, 2, 2)),  # fewer displacements than images
        ((1, 1, 3, 3, 3), (2, 3, 3, 3, 3)),  # and more
    ],
)
def test_ill_shapes_are_errors_as_monais(
    image: tuple[int, ...], displacement: tuple[int, ...]
) -> None:
    for layer in (Warp(), MonaiWarp()):
        with pytest.raises(ValueError, match="must be"):
            layer(torch.zeros(image), torch.zeros(displacement))


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 1, 2, 2, 2, 2)])
def test_lines_and_more_than_volumes_are_not_warped(shape: tuple[int, ...]) -> None:
    for layer in (Warp(), MonaiWarp()):
        with pytest.raises(NotImplementedError):
            layer(torch.zeros(shape), torch.zeros(1, len(shape) - 2, *shape[2:]))


def test_the_module_has_the_name_and_the_function_lies_in_it() -> None:
    import scripts.spatial.warp as module

    assert isinstance(module, ModuleType)
    assert module.warp is warp
