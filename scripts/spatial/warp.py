"""Warping by a displacement in voxels: MONAI's ``Warp``, made fast on the CPU."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp as MonaiWarp

from scripts.runtime.tracing import is_recorded

__all__ = ["Warp", "sample", "sampling_grid", "warp"]

# Each of MONAI's Warps warns that it samples with PyTorch; ours never do otherwise.
warnings.filterwarnings("ignore", message="monai.networks.blocks.Warp: Using PyTorch native")


def sampling_grid(displacement: torch.Tensor) -> torch.Tensor:
    """``x + u(x)`` in ``grid_sample``'s coordinates (align_corners), ``(B, *shape, d)``.

    MONAI rebuilds a grid of the identity on the CPU at every call (20-40 % of the time of an
    integration). The identity is one line of numbers an axis, added on the way; the result keeps
    an axis in one piece of memory, as the displacement does, which `grid_sample` reads as fast.
    """
    if is_recorded():  # a program holds plain operations
        planes = [
            line + displacement[:, axis] * voxel
            for axis, (line, voxel) in enumerate(_identity(displacement))
        ]
        return torch.stack(planes[::-1], dim=-1)
    return _SamplingGrid.apply(displacement)


def _identity(displacement: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
    """For each axis where its voxels lie in ``grid_sample``'s coordinates, and a voxel's size.

    An axis of one voxel has no size: whatever the displacement, that voxel is read.
    """
    d, found = displacement.shape[1], []
    for axis, n in enumerate(displacement.shape[2:]):
        line = torch.linspace(-1.0, 1.0, n, device=displacement.device).to(displacement.dtype)
        voxel = 2.0 / (n - 1) if n > 1 else 0.0
        found.append((line.view(-1, *[1] * (d - 1 - axis)), voxel))
    return found


class _SamplingGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, displacement: torch.Tensor) -> torch.Tensor:
        last = displacement.shape[1] - 1  # x, the first coordinate, is the last array axis
        identity = _identity(displacement)
        ctx.voxels = [voxel for _, voxel in identity]
        planes = torch.empty_like(displacement, memory_format=torch.contiguous_format)
        for axis, (line, voxel) in enumerate(identity):
            torch.add(line, displacement[:, axis], alpha=voxel, out=planes[:, last - axis])
        return planes.movedim(1, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        last = grad.shape[-1] - 1
        result = grad.new_empty((len(grad), last + 1, *grad.shape[1:-1]))
        for axis, voxel in enumerate(ctx.voxels):
            torch.mul(grad[..., last - axis], voxel, out=result[:, axis])
        return result


def warp(
    image: torch.Tensor,
    displacement: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """``out(x) = image(x + u(x))``, the same numbers as MONAI's ``Warp``.

    Args:
        image: ``(B, C, *shape)``.
        displacement: ``(B, d, *shape)`` in voxels, channel i along axis i, float32 or float64
            (bfloat16 coordinates would lose moves below a voxel).
        mode: ``bilinear`` (linear in any dimension) or ``nearest``.
        padding_mode: what lies outside: ``zeros`` or ``border``.
    """
    return sample(image, sampling_grid(displacement), mode, padding_mode)


def sample(
    image: torch.Tensor,
    grid: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> torch.Tensor:
    """PyTorch's ``grid_sample``, spread over the cores where it would leave them idle.

    ``grid_sample`` on a 3-D volume is parallel over the batch alone, so that one volume would
    run on one core. The points are therefore laid out as several batch entries that all look at
    the same image: as they lie, sheet by sheet, or, where a gradient is asked for, of which each
    entry makes a volume of its own, as one entry a core.

    Args:
        image: ``(B, C, *source)``.
        grid: ``(B, *shape, d)`` in ``grid_sample``'s coordinates.
        mode: ``bilinear`` (linear in any dimension) or ``nearest``.
        padding_mode: what lies outside: ``zeros`` or ``border``.
        align_corners: whether -1 and 1 are the outermost voxels' centres or their outer faces.

    Returns:
        ``(B, C, *shape)``.
    """
    batch, channels, shape = image.shape[0], image.shape[1], grid.shape[1:-1]
    take = partial(F.grid_sample, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    slabs = torch.get_num_threads() if image.device.type == "cpu" else 1
    if batch != 1 or slabs == 1 or len(shape) != 3:
        return take(image, grid)
    if not (torch.is_grad_enabled() and (image.requires_grad or grid.requires_grad)):
        sheets = take(image.expand(shape[0], *image.shape[1:]), grid[0, :, None])
        return sheets.movedim(0, 2).reshape(1, channels, *shape)
    points = grid.reshape(-1, len(shape))
    spare = -len(points) % slabs
    if spare:
        points = F.pad(points, (0, 0, 0, spare))
    points = points.reshape(slabs, -1, 1, 1, len(shape))
    sampled = take(image.expand(slabs, *image.shape[1:]), points)
    flat = sampled.reshape(slabs, channels, -1).movedim(1, 0).reshape(channels, -1)
    return flat[:, : flat.shape[1] - spare].reshape(1, channels, *shape)


class Warp(MonaiWarp):
    """MONAI's ``Warp`` (voxels, array-axis order), spread over the cores.

    A misspelt mode is an error here, where MONAI's falls back silently.

    Args:
        mode: ``bilinear`` or ``nearest``.
        padding_mode: ``zeros`` or ``border``.
    """

    def __init__(self, mode: str = "bilinear", padding_mode: str = "zeros") -> None:
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode is 'bilinear' or 'nearest', not {mode!r}")
        if padding_mode not in ("zeros", "border"):
            raise ValueError(f"padding_mode is 'zeros' or 'border', not {padding_mode!r}")
        super().__init__(mode=mode, padding_mode=padding_mode)
        self.sampling = mode
        self.outside = padding_mode
        self.arguments = {"mode": mode, "padding_mode": padding_mode}

    def forward(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """Warp ``image (B, C, *shape)`` by ``ddf (B, d, *shape)`` in voxels."""
        return warp(image, ddf, self.sampling, self.outside)
