"""The registration U-Net: from a pair of images to a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.networks.pooling import join_above, max_pool

__all__ = ["RegistrationUNet", "convolution_of"]

_TINY = 4096  # voxels
_SLOPE = 0.2  # of the leaky rectifier, as in VoxelMorph


class _Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that stays fast on small volumes.

    PyTorch runs a single float32 CPU image with B * C * X * Y of at most 20,480 on a slow
    convolution, 4 to 30 times slower than oneDNN's. At 64x72x64 this affects most levels of the
    U-Net. Two images, one of them zero, are computed faster.

    oneDNN's bfloat16 kernels for AVX-512 read uninitialised memory if a volume is tiny (torch 2.13,
    2x2x2 voxels: sometimes a gradient isn't finite). Tiny volumes cost little, so on a CPU they are
    always computed in float32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``nn.Conv3d``."""
        tiny = input[0, 0].numel() <= _TINY
        if tiny and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.forward(input.float())
        alone = input.shape[0] == 1 and input[0, :, :, :, 0].numel() <= 20480
        if (
            not alone
            or input.device.type != "cpu"
            or input.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        return super().forward(torch.cat([input, torch.zeros_like(input)]))[:1]


def convolution_of(spatial_dims: int) -> type[nn.Conv2d] | type[_Conv3d]:
    """The convolution of images of 2 or 3 dimensions."""
    return _Conv3d if spatial_dims == 3 else nn.Conv2d


class RegistrationUNet(nn.Module):
    """U-Net in the style of VoxelMorph, for images of any size.

    ``enc_features``: one convolution per level at full, 1/2, 1/4, ... resolution, each followed by
    pooling. ``dec_features``: as many convolutions as encoder levels, each followed by upsampling
    and the skip connection; the remaining ones are convolutions at full resolution. A last
    convolution, initialised near zero, makes the field. For a field at ``1/factor`` of the
    resolution the decoder stops at that level and omits the convolutions above it, which cost most.

    Odd sizes are pooled with the remainder kept (ceil) and cropped again by the decoder, so that no
    padding to a multiple of 2**levels is needed.

    Balakrishnan et al., VoxelMorph, IEEE TMI 2019.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the concatenated pair.
        enc_features: output channels of the encoder's convolutions.
        dec_features: output channels of the decoder's convolutions, at least as many.
        factor: 1, 2, 4, ...; the field's grid is ``ceil(shape / factor)``.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        seed: of the initial weights; None: use torch's generator in its current state.
        further: output channels besides the field's, such as a confidence.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        enc_features: Sequence[int] = (16, 32, 32, 32),
        dec_features: Sequence[int] = (32, 32, 32, 16, 16),
        factor: int = 1,
        checkpointing: bool = False,
        seed: int | None = None,
        further: int = 0,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "enc_features": list(enc_features),
            "dec_features": list(dec_features),
            "factor": factor,
            "checkpointing": checkpointing,
        }
        levels = len(enc_features)
        skipped = factor.bit_length() - 1
        if 2**skipped != factor or skipped > levels:
            raise ValueError(f"factor must be a power of 2 up to 2**{levels}, got {factor}")
        if len(dec_features) < levels:
            raise ValueError(
                f"dec_features needs at least {levels} entries, one per encoder level, "
                f"got {len(dec_features)}"
            )
        self.checkpointing = checkpointing
        # Initialise on the CPU, so that the generators of other devices don't change.
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            self._make_layers(
                spatial_dims, in_channels, enc_features, dec_features, skipped, further
            )

    def _make_layers(
        self,
        spatial_dims: int,
        in_channels: int,
        enc_features: Sequence[int],
        dec_features: Sequence[int],
        skipped: int,
        further: int,
    ) -> None:
        levels = len(enc_features)
        convolution = convolution_of(spatial_dims)

        def block(n_in: int, n_out: int) -> nn.Module:
            return nn.Sequential(
                convolution(n_in, n_out, kernel_size=3, padding=1),
                nn.LeakyReLU(_SLOPE, inplace=True),
            )

        self.encoder = nn.ModuleList()
        channels = in_channels
        for features in enc_features:
            self.encoder.append(block(channels, features))
            channels = features

        # Decoder: convolve, upsample, join the skip. The last `skipped` levels are omitted, and
        # so is the skip at the level of the field itself.
        self.decoder = nn.ModuleList()
        climbs = levels - skipped
        for step in range(climbs):
            self.decoder.append(block(channels, dec_features[step]))
            channels = dec_features[step] + enc_features[levels - 1 - step]
        self.final = nn.ModuleList()
        rest = dec_features[levels:] if skipped == 0 else dec_features[climbs : climbs + 1]
        for features in rest:
            self.final.append(block(channels, features))
            channels = features

        self.field = convolution(channels, spatial_dims + further, kernel_size=3, padding=1)
        nn.init.normal_(self.field.weight, std=1e-5)
        assert self.field.bias is not None
        nn.init.zeros_(self.field.bias)

    def _run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Field ``(B, d + further, *ceil(shape / factor))`` of ``(B, in_channels, *shape)``."""
        skips = []
        for block in self.encoder:
            x = self._run(block, x)
            skips.append(x)
            x = max_pool(x)
        for block in self.decoder:
            x = self._run(block, x)
            x = join_above(x, skips.pop())
        for block in self.final:
            x = self._run(block, x)
        return self.field(x)
