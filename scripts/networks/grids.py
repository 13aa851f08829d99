"""Grids of reduced resolution: averages of images, and fields from one grid to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from scripts.runtime.tracing import is_recorded

__all__ = ["averaged", "averaged_where", "enlarge", "leading_block", "reduced_shape", "regridded"]


def reduced_shape(shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """Shape of the grid of a field at ``1/factor`` of the resolution (rounded up)."""
    return tuple(-(-n // factor) for n in shape)


def enlarge(field: torch.Tensor, shape: Sequence[int], factor: int) -> torch.Tensor:
    """Resample a field from the reduced grid to the full one; its values aren't rescaled.

    A reduced voxel covers ``factor`` full ones, so its centre lies at ``factor * i +
    (factor - 1) / 2``: that is ``interpolate`` with align_corners=False. (MONAI's
    ``VoxelMorph(half_res=True)`` aligns the corners instead and is off by half a voxel.)

    Args:
        field: ``(B, C, *reduced_shape(shape, factor))``.
        shape: the full grid.
        factor: number of full voxels that a reduced voxel spans along an axis.
    """
    if factor == 1:
        return field
    if is_recorded():
        mode = "trilinear" if len(shape) == 3 else "bilinear"
        full = F.interpolate(field, scale_factor=factor, mode=mode, align_corners=False)
        return leading_block(full, shape)
    if factor == 2 and field.device.type == "cpu":
        return _Doubled.apply(field, tuple(shape))
    # This is what `interpolate` calls, which takes a size or a factor but not both: the part beyond
    # the shape would be cut off again, and its gradient filled with zeros axis by axis.
    upsample: Any = (
        torch.ops.aten.upsample_trilinear3d
        if len(shape) == 3
        else torch.ops.aten.upsample_bilinear2d
    )
    return upsample(field, list(shape), False, *[float(factor)] * len(shape))


class _Doubled(torch.autograd.Function):
    """Resampling to twice the resolution, axis by axis.

    The same numbers as PyTorch's, up to rounding, in less than half of its time on a CPU: a value
    is 3/4 of the nearer and 1/4 of the farther of two neighbours, and at the border the outermost.
    """

    @staticmethod
    def forward(ctx: Any, field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        # The last axis first: its strides are the slowest, and the field is still small.
        for axis in range(field.dim() - 1, 1, -1):
            field = _doubled(field, axis, shape[axis - 2])
        return field

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        for axis in range(2, grad.dim()):
            grad = _folded(grad, axis)
        return grad, None


def _even_and_odd(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second value along an axis, from the first and from the second one on."""
    before = (slice(None),) * axis
    return x[(*before, slice(0, None, 2))], x[(*before, slice(1, None, 2))]


def _doubled(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Twice as many values along an axis, or one less than that."""
    n, shape = x.shape[axis], list(x.shape)
    shape[axis] = size
    result = x.new_empty(shape)
    even, odd = _even_and_odd(result, axis)
    pairs = n - 1
    left, right = x.narrow(axis, 0, pairs), x.narrow(axis, 1, pairs)
    even.select(axis, 0).copy_(x.select(axis, 0))
    torch.lerp(right, left, 0.25, out=even.narrow(axis, 1, pairs))
    torch.lerp(left, right, 0.25, out=odd.narrow(axis, 0, pairs))
    if odd.shape[axis] > pairs:
        odd.select(axis, pairs).copy_(x.select(axis, pairs))
    return result


def _folded(grad: torch.Tensor, axis: int) -> torch.Tensor:
    """The transpose of `_doubled`."""
    even, odd = _even_and_odd(grad, axis)
    n = even.shape[axis]
    pairs = n - 1
    result = even.clone(memory_format=torch.contiguous_format)
    later, earlier = even.narrow(axis, 1, pairs), odd.narrow(axis, 0, pairs)
    left, right = result.narrow(axis, 0, pairs), result.narrow(axis, 1, pairs)
    right.sub_(later, alpha=0.25).add_(earlier, alpha=0.25)
    left.add_(later, alpha=0.25).add_(earlier, alpha=0.75)
    if odd.shape[axis] > pairs:
        result.select(axis, pairs).add_(odd.select(axis, pairs))
    return result


def leading_block(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The first ``shape`` voxels of ``(B, C, ...)``; undoes rounding up to a multiple."""
    for axis, n in enumerate(shape, start=2):
        x = x.narrow(axis, 0, n)
    return x


def averaged(image: torch.Tensor, factor: int | Sequence[int]) -> torch.Tensor:
    """Block means of ``(B, C, *shape)``, at least in float32.

    Args:
        image: a block that the border cuts is averaged over its existing voxels.
        factor: width of a block in voxels, along all axes or along each.
    """
    factors = [factor] * (image.dim() - 2) if isinstance(factor, int) else factor
    if all(f == 1 for f in factors):
        return image
    pool = F.avg_pool3d if image.dim() == 5 else F.avg_pool2d
    block = [min(f, n) for f, n in zip(factors, image.shape[2:], strict=True)]
    values = image.to(torch.promote_types(image.dtype, torch.float32))
    return pool(values, block, ceil_mode=True, count_include_pad=False)


def averaged_where(
    image: torch.Tensor, valid: torch.Tensor, factor: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block means over valid voxels, 0 where a block has none, and the valid share of each block.

    Values of other voxels have no influence, whatever they are.

    Args:
        image: ``(B, C, *shape)``.
        valid: ``(B, 1, *shape)`` bool.
        factor: see `averaged`.
    """
    share = averaged(valid.to(torch.promote_types(image.dtype, torch.float32)), factor)
    total = averaged(image.where(valid, 0), factor)
    return total / share.where(share > 0, 1.0), share


def regridded(field: torch.Tensor, shape: Sequence[int], of: int, to: int) -> torch.Tensor:
    """Resample a field from a grid reduced by ``of`` to one reduced by ``to``; values aren't
    rescaled.

    Args:
        field: ``(B, C, *reduced_shape(shape, of))``.
        shape: the full grid.
        of: a power of 2.
        to: a power of 2.
    """
    if to > of:
        return averaged(field, to // of)
    return enlarge(field, reduced_shape(shape, to), of // to)
