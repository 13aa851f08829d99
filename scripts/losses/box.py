"""Sums over a cubic window, the inner loop of the local correlation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["box_sum", "window_size"]

_IN_CACHE = 2**18  # voxels of a slab; the cache holds a few of these


def _sum_along(x: torch.Tensor, axis: int, window: int) -> torch.Tensor:
    """Sum of ``window`` neighbours along one axis, zeros outside, same size.

    Doubling: sums of 1, 2, 4, ... neighbours are built from one another and joined according to the
    binary digits of the window, so that a window of 7 costs 4 additions instead of 6. Unlike a
    cumulative sum it adds few numbers of similar size (float32 stays exact to a few ulp). Unlike
    three average poolings it is limited only by memory bandwidth: 10 times faster on a CPU.
    """
    n, half = x.shape[axis], window // 2
    padded = list(x.shape)
    padded[axis] = n + 2 * half
    run = x.new_empty(padded)
    run.narrow(axis, 0, half).zero_()
    run.narrow(axis, half + n, half).zero_()
    run.narrow(axis, half, n).copy_(x)
    length, done = 1, 0
    total: torch.Tensor | None = None
    while True:
        if window & length:
            piece = run.narrow(axis, done, n)
            total = piece.clone() if total is None else total.add_(piece)
            done += length
        if done == window:
            return total  # type: ignore[return-value]
        size = run.shape[axis] - length
        run = run.narrow(axis, 0, size) + run.narrow(axis, length, size)
        length *= 2


def box_sum(x: torch.Tensor, window: int) -> torch.Tensor:
    """Sum over a cube of width ``window`` around each voxel of ``(B, C, *shape)``, zeros
    outside."""
    if x.dim() < 5 or x.device.type != "cpu" or x.numel() <= 4 * _IN_CACHE:
        for axis in range(2, x.dim()):
            x = _sum_along(x, axis, window)
        return x
    # In slabs across the summed axis, so that intermediate sums stay in the cache.
    planes, result = torch.empty_like(x), torch.empty_like(x)
    for part, total in _slabs(x, planes, 2):
        total.copy_(_sum_along(_sum_along(part, 4, window), 3, window))
    for part, total in _slabs(planes, result, 3):
        total.copy_(_sum_along(part, 2, window))
    return result


def _slabs(
    source: torch.Tensor, target: torch.Tensor, axis: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    thick = max(1, _IN_CACHE * source.shape[axis] // source.numel())
    return zip(source.split(thick, axis), target.split(thick, axis), strict=True)


def window_size(x: torch.Tensor, window: int) -> torch.Tensor:
    """Number of image voxels in each window, ``(1, 1, *shape)``: fewer at the border."""
    size = x.new_ones(())
    for n in x.shape[2:]:
        size = size[..., None] * _sum_along(x.new_ones(n), 0, window)
    return size[None, None]
