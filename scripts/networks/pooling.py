"""Pooling and upsampling by two, for feature maps in channels-last memory order."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F

from scripts.networks.grids import leading_block
from scripts.runtime.tracing import is_recorded

__all__ = ["join_above", "max_pool"]


def max_pool(x: torch.Tensor) -> torch.Tensor:
    """Maxima of ``(B, C, *shape)`` over blocks of 2 along each axis; border blocks may be cut.

    Bit-equal to PyTorch's ``max_pool3d``, including the gradient, but with less memory in between:
    the position of a maximum takes 8 bytes there, and 2 here (4 in very large planes), counted from
    the first voxel of the block; and autocast doesn't convert it to float32. A training step at
    145x174x145 then peaks at 1.45 instead of 1.65 GiB and takes a fifth less time.
    """
    if is_recorded():
        pool = F.max_pool3d if x.dim() == 5 else F.max_pool2d
        return pool(x, kernel_size=2, ceil_mode=True)
    return _MaxPool.apply(x) if x.requires_grad else _maxima(x)[0]


def join_above(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """``x`` upsampled by two (nearest), joined with the channels of the skip connection.

    The same numbers as ``interpolate`` (nearest), a crop and ``cat``, but written once instead of
    three times. The gradient avoids the copy into another memory order that ``interpolate`` makes.

    Args:
        x: ``(B, C, *ceil(shape / 2))``.
        skip: ``(B, S, *shape)``.

    Returns:
        ``(B, C + S, *shape)``.
    """
    if is_recorded():
        above = leading_block(F.interpolate(x, scale_factor=2, mode="nearest"), skip.shape[2:])
        return torch.cat([above, skip], dim=1)
    return _JoinAbove.apply(x, skip)


def _corners(x: torch.Tensor) -> list[tuple[torch.Tensor, Any]]:
    """For each corner of a block: its voxels, and the index of the blocks that have this corner."""
    result: list[tuple[torch.Tensor, Any]] = []
    for corner in itertools.product((0, 1), repeat=x.dim() - 2):
        start: Any = (..., *[slice(first, None, 2) for first in corner])
        voxels = x[start]
        result.append((voxels, (..., *[slice(n) for n in voxels.shape[2:]])))
    return result


def _maxima(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maxima, and the position of each within its channel.

    Positions are computed even if they aren't needed: otherwise PyTorch's autocast on a CPU
    converts the whole volume to float32 and back, which takes longer than the maxima.
    """
    pool: Any = F.max_pool3d if x.dim() == 5 else F.max_pool2d
    return pool(x, kernel_size=2, ceil_mode=True, return_indices=True)


def _first_voxels(x: torch.Tensor) -> torch.Tensor:
    """For each block of ``(B, C, *shape)`` the index of its first voxel within a channel."""
    shape = x.shape[2:]
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis, n in enumerate(shape):
        places = torch.arange(0, n, 2, device=x.device) * shape[axis + 1 :].numel()
        index = index[..., None] + places
    return index


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        pooled, index = _maxima(x)
        farthest = 1 + sum(x.shape[axis:].numel() for axis in range(3, x.dim()))
        small = torch.int16 if farthest <= torch.iinfo(torch.int16).max else torch.int32
        ctx.save_for_backward(x, index.sub_(_first_voxels(x)).to(small))
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, offset = ctx.saved_tensors
        index = offset + _first_voxels(x)
        n = x.dim() - 2
        # PyTorch's graph calls this; `max_unpool3d` gives the same, three times slower.
        backward = getattr(torch.ops.aten, f"max_pool{n}d_with_indices_backward")
        return backward(grad, x, [2] * n, [2] * n, [0] * n, [1] * n, True, index)


class _JoinAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        ctx.channels, ctx.dtypes = channels, (x.dtype, skip.dtype)
        lies_last = x.dim() == 5 and skip.is_contiguous(memory_format=torch.channels_last_3d)
        joined = torch.empty(
            (len(x), channels + skip.shape[1], *skip.shape[2:]),
            dtype=torch.promote_types(x.dtype, skip.dtype),
            device=x.device,
            memory_format=torch.channels_last_3d if lies_last else torch.contiguous_format,
        )
        for voxels, place in _corners(joined[:, :channels]):
            voxels.copy_(x[place])
        joined[:, channels:] = skip
        return joined

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (first, _), *others = _corners(grad[:, : ctx.channels])  # all blocks have a first voxel
        total = first.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
        for voxels, place in others:
            total[place] += voxels
        of_x, of_skip = ctx.dtypes
        return total.to(of_x), grad[:, ctx.channels :].to(of_skip)
