"""Down and up by two against PyTorch's operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.networks.grids import leading_block
from scripts.networks.pooling import join_above, max_pool

SHAPES = [(8, 6), (7, 5), (1, 4), (6, 8, 4), (7, 5, 3), (1, 9, 2), (1, 1, 1)]


def pytorchs(x: torch.Tensor) -> torch.Tensor:
    pool = F.max_pool3d if x.dim() == 5 else F.max_pool2d
    return pool(x, kernel_size=2, ceil_mode=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_pytorchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, *shape).to(dtype)
    assert torch.equal(max_pool(x), pytorchs(x))


def test_half_precision_stays_under_autocast() -> None:
    x = torch.randn(1, 2, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert max_pool(x).dtype == max_pool(x.requires_grad_()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [*SHAPES, (2, 400, 400)])
@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "with equal voxels"])
def test_the_gradient_is_pytorchs(shape: tuple[int, ...], equal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 6 * torch.Size(shape).numel()
    x = torch.randperm(count, generator=generator).double().view(2, 3, *shape)
    if equal:
        x = x % 3
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(pytorchs(x).shape, generator=generator, dtype=torch.float64)
    (max_pool(ours) * weight).sum().backward()
    (pytorchs(theirs) * weight).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("shape", "width"), [((9, 8, 7), 2), ((2, 181, 180), 2), ((2, 182, 180), 4)]
)
def test_a_place_is_kept_in_as_few_bytes_as_hold_it(shape: tuple[int, ...], width: int) -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(1, 1, *shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        max_pool(x)
    assert [t.element_size() for t in kept if not t.is_floating_point()] == [width]


def test_the_order_in_memory_stays() -> None:
    x = torch.randn(1, 4, 6, 5, 7).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    pooled = max_pool(x)
    assert pooled.is_contiguous(memory_format=torch.channels_last_3d)
    pooled.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_what_is_no_number_stays_to_be_seen() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = torch.nan
    x.requires_grad_()
    pooled = max_pool(x)
    assert pooled.isnan().sum() == 1
    pooled.sum().backward()
    assert torch.isfinite(x.grad).all()


def pytorchs_join(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    above = leading_block(F.interpolate(x, scale_factor=2, mode="nearest"), skip.shape[2:])
    return torch.cat([above, skip], dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_joined_are_the_enlarged_and_the_skip(shape: tuple[int, ...], last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *(-(-n // 2) for n in shape), generator=generator, dtype=torch.float64)
    skip = torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64)
    if last and len(shape) == 3:
        x, skip = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, skip))
    x.requires_grad_()
    skip.requires_grad_()
    joined, expected = join_above(x, skip), pytorchs_join(x, skip)
    assert torch.equal(joined, expected)
    if last and len(shape) == 3:
        assert joined.is_contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(joined.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((joined * weight).sum(), (x, skip))
    theirs = torch.autograd.grad((expected * weight).sum(), (x, skip))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_half_precision_are_summed_in_float32() -> None:
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    skip = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16)
    weight = torch.cat([torch.tensor([256.0]), torch.ones(7)]).view(1, 1, 2, 2, 2)
    (join_above(x, skip)[:, :1].float() * weight).sum().backward()
    assert x.grad is not None
    assert float(x.grad) == float(torch.tensor(263.0).bfloat16())  # one by one it would be 256


def test_values_of_two_kinds_become_the_wider() -> None:
    x, skip = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), torch.full((1, 1, 2, 2), 1.001)
    assert torch.equal(join_above(x, skip), pytorchs_join(x, skip))
