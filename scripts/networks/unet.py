"""The registration U-Net: a pair of images in, a field out."""

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
    """``nn.Conv3d`` that doesn't fall off oneDNN on small volumes.

    PyTorch sends a single float32 CPU image whose B * C * X * Y is at most 20,480 to its own
    slow convolution, 4 to 30 times slower than oneDNN's: at 64x72x64 that is most levels of the
    U-Net. Two images, one of them zero, are computed faster.

    oneDNN's bfloat16 kernels for AVX-512 read memory that nothing has written when a volume is
    tiny (torch 2.13, 2x2x2 voxels: now and then a gradient isn't finite). Tiny volumes cost
    nothing, so that on a CPU they are computed in float32 whatever the autocast says.
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
    """U-Net of the VoxelMorph family for images of any size.

    ``enc_features``: one convolution a level at full, 1/2, 1/4, ... resolution, a pooling after
    each. ``dec_features``: as many convolutions followed by up-sampling and the skip as there are
    encoder levels; what remains are convolutions at full resolution; a last convolution, near
    zero at the start, makes the field. A field at ``1/factor`` of the resolution stops the
    decoder at that level: the convolutions above it, the costliest, are then left out.

    Odd sizes are pooled with the rest kept (ceil) and cropped again on the way up, so that
    nothing needs padding to a multiple of 2**levels.

    Balakrishnan et al., VoxelMorph, IEEE TMI 2019.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the pair, concatenated.
        enc_features: output channels of the encoder's convolutions.
        dec_features: output channels of the decoder's convolutions, at least as many.
        factor: 1, 2, 4, ...; the field lives on ``ceil(shape / factor)``.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        seed: of the starting weights; None: torch's generator goes on from where it is.
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
            raise ValueError(f"factor is a power of 2 up to 2**{levels}, not {factor}")
        if len(dec_features) < levels:
            raise ValueError(
                f"dec_features needs at least {levels} entries, one an encoder level, "
                f"not {len(dec_features)}"
            )
        self.checkpointing = checkpointing
        # Weights start on the CPU: other devices' generators are left alone.
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            self._make_layers(spatial_dims, in_channels, enc_features, dec_features, skipped)

    def _make_layers(
        self,
        spatial_dims: int,
        in_channels: int,
        enc_features: Sequence[int],
        dec_features: Sequence[int],
        skipped: int,
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

        # Going up: convolve, double the size, join the skip; the last `skipped` levels are
        # left out, and so is the skip where the field's own level is reached.
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

        self.field = convolution(channels, spatial_dims, kernel_size=3, padding=1)
        nn.init.normal_(self.field.weight, std=1e-5)
        assert self.field.bias is not None
        nn.init.zeros_(self.field.bias)

    def _run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Field ``(B, d, *ceil(shape / factor))`` of the pair ``(B, in_channels, *shape)``."""
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
