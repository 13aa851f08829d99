"""Random changes of intensity, the same for all networks for pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandCoarseDropout,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandGibbsNoise,
    RandHistogramShift,
    RandLambda,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
    Transform,
)

__all__ = ["intensity_augmentation", "smooth_field"]


_CONTROL = 4  # control points per axis of a random smooth field


def smooth_field(
    count: int, shape: Sequence[int], rms: float, generator: torch.Generator
) -> torch.Tensor:
    """Random displacements ``(count, d, *shape)`` in voxels of the given root mean square."""
    d = len(shape)
    coarse = torch.randn(count, d, *[_CONTROL] * d, generator=generator)
    mode = "trilinear" if d == 3 else "bilinear"
    field = F.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True)
    length = field.square().sum(1, keepdim=True).flatten(1).mean(1).sqrt()
    return field * (rms / length).view(-1, *[1] * (d + 1))


def _inverted(image: torch.Tensor) -> torch.Tensor:
    return 1 - image


def intensity_augmentation(
    names: Sequence[str], shape: Sequence[int], probability: float
) -> Compose:
    """MONAI's random intensity transforms for an image ``(1, *shape)`` from 0 to 1."""
    made: dict[str, Transform] = {
        "bias_field": RandBiasField(degree=3, coeff_range=(0.0, 0.3), prob=probability),
        "contrast": RandAdjustContrast(gamma=(0.5, 2.0), prob=probability),
        "histogram_shift": RandHistogramShift(num_control_points=(5, 15), prob=probability),
        "smoothing": RandGaussianSmooth((0.25, 1.2), (0.25, 1.2), (0.25, 1.2), prob=probability),
        "gibbs": RandGibbsNoise(alpha=(0.0, 0.6), prob=probability),
        "low_resolution": RandSimulateLowResolution(
            upsample_mode="trilinear" if len(shape) == 3 else "bilinear",
            zoom_range=(0.4, 1.0),
            prob=probability,
        ),
        "dropout": RandCoarseDropout(
            holes=1,
            max_holes=6,
            spatial_size=[max(1, n // 10) for n in shape],
            max_spatial_size=[max(2, n // 4) for n in shape],
            fill_value=0.0,
            prob=probability,
        ),
        "noise": RandGaussianNoise(std=0.1, prob=probability),
        "blur": RandGaussianSmooth((0.25, 2.0), (0.25, 2.0), (0.25, 2.0), prob=probability),
        "gain": RandScaleIntensity(factors=0.3, prob=probability),
        "offset": RandShiftIntensity(offsets=0.1, prob=probability),
        "invert": RandLambda(func=_inverted, prob=probability),
    }
    return Compose([transform for name, transform in made.items() if name in names])
