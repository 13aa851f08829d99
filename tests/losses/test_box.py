"""Box sums against a plain convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.losses.box import box_sum, window_size


@pytest.mark.parametrize("window", [3, 5, 7, 9])
@pytest.mark.parametrize("shape", [(11, 12), (5, 6), (8, 9, 11), (4, 3, 5)])
def test_it_is_a_convolution_with_ones(shape: tuple[int, ...], window: int) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    convolve = F.conv3d if len(shape) == 3 else F.conv2d
    ones = x.new_ones(1, 1, *([window] * len(shape)))
    expected = convolve(x.flatten(0, 1)[:, None], ones, padding=window // 2).view_as(x)
    torch.testing.assert_close(box_sum(x, window), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("in_cache", [1, 60, 450])
def test_slabs_join_seamlessly(window: int, in_cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 1, 9, 10, 11, dtype=torch.float64)
    whole = box_sum(x, window)
    monkeypatch.setattr("scripts.losses.box._IN_CACHE", in_cache)
    torch.testing.assert_close(box_sum(x, window), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [3, 9])
def test_it_leaves_its_input_alone(window: int) -> None:
    x = torch.randn(1, 1, 6, 7)
    before = x.clone()
    box_sum(x, window)
    assert torch.equal(x, before)


def test_windows_count_only_the_voxels_that_exist() -> None:
    size = window_size(torch.zeros(1, 1, 5, 2), 3)[0, 0]
    along = torch.tensor([2.0, 3, 3, 3, 2])
    assert torch.equal(size, along[:, None] * torch.tensor([2.0, 2]))


def test_it_is_its_own_adjoint() -> None:
    """<box(x), y> = <x, box(y)>: the closed-form gradient of the correlation rests on it."""
    x, y = (torch.randn(1, 1, 7, 6, 5, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close((box_sum(x, 5) * y).sum(), (x * box_sum(y, 5)).sum())
