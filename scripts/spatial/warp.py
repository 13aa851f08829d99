"""Warping by a displacement in voxels: MONAI's ``Warp``, made fast on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.config.deviceconfig import USE_COMPILED
from monai.networks.blocks import Warp as MonaiWarp
from monai.networks.layers.spatial_transforms import grid_pull

from scripts.runtime.tracing import is_recorded

__all__ = ["Warp", "sample", "sampling_grid", "warp"]

# MONAI's Warp warns that it samples with PyTorch. Ours always does where PyTorch can.
warnings.filterwarnings("ignore", message="monai.networks.blocks.Warp: Using PyTorch native")

_MODES: dict[int, str] = {1: "bilinear", 0: "nearest"}
"""MONAI's numbers of the modes that PyTorch has; ``bicubic`` has none, 3 is a spline."""
_SPLINES = range(2, 8)
"""Orders of splines, which only MONAI's C++ extension can interpolate."""
_PADDING_MODES: dict[int, str] = {7: "zeros", 0: "border", 1: "reflection"}
"""MONAI's numbers of the padding modes that PyTorch has."""
_BOUNDS = range(2, 6)
"""Padding modes of MONAI's C++ extension only: dct2, dst1, dst2 and dft."""


def sampling_grid(displacement: torch.Tensor) -> torch.Tensor:
    """``x + u(x)`` in ``grid_sample``'s coordinates (align_corners), ``(B, *shape, d)``.

    MONAI rebuilds an identity grid on the CPU at every call (20-40 % of the time of an
    integration). Here the identity is one row of numbers per axis, added on the fly. In the result
    each axis is contiguous in memory, as in the displacement; `grid_sample` reads this just as
    fast.
    """
    if is_recorded():  # a recorded program may only contain plain operations
        planes = [
            line + displacement[:, axis] * voxel
            for axis, (line, voxel) in enumerate(_identity(displacement))
        ]
        return torch.stack(planes[::-1], dim=-1)
    return _SamplingGrid.apply(displacement)


def _identity(displacement: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
    """Offset and voxel size of each axis in ``grid_sample``'s coordinates.

    An axis of one voxel has size 0: that voxel is sampled for any displacement.
    """
    d, result = displacement.shape[1], []
    for axis, n in enumerate(displacement.shape[2:]):
        line = torch.linspace(-1.0, 1.0, n, device=displacement.device).to(displacement.dtype)
        voxel = 2.0 / (n - 1) if n > 1 else 0.0
        result.append((line.view(-1, *[1] * (d - 1 - axis)), voxel))
    return result


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
        mode: ``bilinear`` (linear in any dimension), ``nearest``, or in a plane ``bicubic``.
        padding_mode: values outside the image: ``zeros``, ``border`` or ``reflection``.
    """
    return sample(image, sampling_grid(displacement), mode, padding_mode)


def sample(
    image: torch.Tensor,
    grid: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> torch.Tensor:
    """PyTorch's ``grid_sample``, spread over all CPU cores.

    ``grid_sample`` on a 3-D volume runs in parallel only over the batch, so that one volume would
    use one core. The points are therefore split into several batch entries that share the image:
    sheet by sheet, or, if a gradient is needed, into one entry per core, because each entry then
    needs a separate volume.

    Args:
        image: ``(B, C, *source)``.
        grid: ``(B, *shape, d)`` in ``grid_sample``'s coordinates.
        mode: ``bilinear`` (linear in any dimension), ``nearest``, or in a plane ``bicubic``.
        padding_mode: values outside the image: ``zeros``, ``border`` or ``reflection``.
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
    """MONAI's ``Warp`` (voxels, array-axis order), spread over all CPU cores.

    It accepts everything that MONAI's accepts and gives the same numbers, with three differences. A
    misspelt mode is an error; MONAI falls back silently. The default padding is ``zeros``, MONAI's
    is ``border``. Modes given by name are PyTorch's, even if MONAI's C++ extension is in use.

    Args:
        mode: ``bilinear`` (linear in any dimension), ``nearest``, or in a plane ``bicubic``, by
            name or as a `GridSampleMode`; or MONAI's number: 0 is ``nearest``, 1 ``bilinear``.
            2 to 7, a spline's order, need MONAI's C++ extension (``BUILD_MONAI=1``).
        padding_mode: values outside the image: ``zeros``, ``border`` or ``reflection`` (about the
        centres
            of the outermost voxels), by name or as a `GridSamplePadMode`; or MONAI's number: 7 is
            ``zeros``, 0 ``border``, 1 ``reflection``. 2 to 5 need MONAI's C++ extension.
        jitter: shift the sampled points by a fixed random draw from [0, 1) voxels along each axis,
            as MONAI does.

    Raises:
        ValueError: unknown mode or padding mode, or one that needs the extension.
    """

    def __init__(
        self,
        mode: str | int = "bilinear",
        padding_mode: str | int = "zeros",
        jitter: bool = False,
    ) -> None:
        mode = _choice("mode", mode, (*_MODES.values(), "bicubic"), _MODES, _SPLINES)
        padding_mode = _choice(
            "padding_mode", padding_mode, tuple(_PADDING_MODES.values()), _PADDING_MODES, _BOUNDS
        )
        super().__init__(mode=mode, padding_mode=padding_mode, jitter=jitter)
        self.sampling = mode
        self.outside = padding_mode
        self.arguments = {"mode": mode, "padding_mode": padding_mode, "jitter": jitter}

    def forward(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """Warp ``image (B, C, *shape)`` by ``ddf (B, d, *shape)`` in voxels, d 2 or 3.

        Raises:
            NotImplementedError: the image has another number of axes.
            ValueError: the shapes don't match, or a volume is given with ``bicubic``.
        """
        self._check(image, ddf)
        if isinstance(self.sampling, int) or isinstance(self.outside, int):
            points = (self.get_reference_grid(ddf, jitter=self.jitter) + ddf).movedim(1, -1)
            return grid_pull(
                image,
                points,
                bound=self._padding_mode,
                extrapolate=True,
                interpolation=self._interp_mode,
            )
        if self.jitter:
            with torch.random.fork_rng():
                torch.random.manual_seed(0)  # MONAI's seed
                ddf = ddf + torch.rand(ddf.shape, dtype=ddf.dtype, device=ddf.device)
        return warp(image, ddf, self.sampling, self.outside)

    def _check(self, image: torch.Tensor, ddf: torch.Tensor) -> None:
        d = image.ndim - 2
        if d not in (2, 3):
            raise NotImplementedError(
                f"an image of shape {tuple(image.shape)} can't be warped: must be (B, C, X, Y) or "
                "(B, C, X, Y, Z)"
            )
        if d == 3 and self.sampling == "bicubic":
            raise ValueError(
                "mode 'bicubic' works on planes only (PyTorch has none for volumes), got an image "
                f"of shape {tuple(image.shape)}; use 'bilinear' or 'nearest'"
            )
        if is_recorded():  # sizes are symbolic; the program may run with others
            return
        fitting = (image.shape[0], d, *image.shape[2:])
        if tuple(ddf.shape) != fitting:
            raise ValueError(
                f"ddf has shape {tuple(ddf.shape)}: must be {fitting} for an image of shape "
                f"{tuple(image.shape)}"
            )


def _choice(
    argument: str,
    given: str | int,
    names: tuple[str, ...],
    numbers: dict[int, str],
    extension: range,
) -> str | int:
    """A mode's name, or MONAI's number of a mode that only its C++ extension has."""
    if isinstance(given, str) and given in names:  # MONAI's enums are strings
        return str(getattr(given, "value", given))
    if isinstance(given, int) and not isinstance(given, bool):
        if given in numbers:
            return numbers[given]
        if given in extension and USE_COMPILED:
            return given
        if given in extension:
            raise ValueError(
                f"{argument} {given} needs MONAI's C++ extension, which is not in use "
                f"(BUILD_MONAI=1); without it {argument} must be {_listed(names)}"
            )
    raise ValueError(
        f"{argument} must be {_listed(names)}, or MONAI's number of one "
        f"({_listed(sorted(numbers))}, with its C++ extension also {extension[0]} to "
        f"{extension[-1]}), got {given!r}"
    )


def _listed(choices: Sequence[str | int]) -> str:
    *others, last = (repr(one) for one in choices)
    return f"{', '.join(others)} or {last}"
