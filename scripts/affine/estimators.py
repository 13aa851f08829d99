"""Estimators of the transform of a pair: regression of parameters, or matching of keypoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets.resnet import ResNet, resnet18
from torch import nn

from scripts.spatial.affine_parameters import Frame, matrix_of, parameter_count
from scripts.spatial.matrix_fit import KeypointFit, fit_matrix

__all__ = ["KeypointEstimator", "ParameterEstimator", "centres_of_mass"]

_SMALL = 48  # voxels along the shortest axis: smaller images aren't pooled at the entrance
_POOLED = 2  # cells per axis for averaging features: their position must not be lost
_GROUPS = 8
_HIDDEN = 128
_RECTIFIED_AT = -1.0  # initially a map counts where it is a standard deviation above its mean


def _resnet(
    spatial_dims: int, channels: int, width: float, stride: int = 1, small: bool = True
) -> ResNet:
    """A ResNet-18 without its last layer, with group normalisation because batches are small.

    For small images it begins with a narrow convolution and no pooling, as in He et al. for images
    of 32 pixels; otherwise the positions of features would be lost.
    """
    return resnet18(
        spatial_dims=spatial_dims,
        n_input_channels=channels,
        widen_factor=width,
        feed_forward=False,
        conv1_t_size=3 if small else 7,
        conv1_t_stride=stride,
        no_max_pool=small,
        norm=("group", {"num_groups": _GROUPS}),
    )


class ParameterEstimator(nn.Module):
    """A ResNet-18 that maps a pair to the parameters of a transform.

    Its last layer is initialised with zeros, which gives the identity. Mean pooling over the whole
    volume would lose the position of a feature; pooling into the cells of a coarse grid keeps it.

    Mok and Chung, Affine medical image registration with coarse-to-fine vision transformer, CVPR
    2022 (for the cascade); He et al., CVPR 2016.

    Args:
        shape: of the network's grid.
        frame: of the network's grid.
        family: transform model.
        pair: ``channels`` (the pair as two channels) or ``towers`` (each image passes through the
            same weights, and the features are concatenated).
        width: 1 is the original ResNet-18 with 64 to 512 channels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        frame: Frame,
        family: str,
        pair: str = "channels",
        width: float = 0.25,
    ) -> None:
        super().__init__()
        if pair not in ("channels", "towers"):
            raise ValueError(f"pair must be 'channels' or 'towers', got {pair!r}")
        d = frame.spatial_dims
        self.frame = frame
        self.family = family
        self.towers = pair == "towers"
        channels = 1 if self.towers else 2
        self.backbone = _resnet(d, channels, width, small=min(shape) < _SMALL)
        pool = nn.AdaptiveAvgPool3d if d == 3 else nn.AdaptiveAvgPool2d
        self.backbone.avgpool = pool(_POOLED)
        features = self.backbone.in_planes * _POOLED**d * (2 if self.towers else 1)
        last = nn.Linear(_HIDDEN, parameter_count(family, d))
        self.head = nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(inplace=True), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def parameters_between(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Parameters ``(B, P)`` float64 of fixed to moving; images ``(B, 1, *shape)``."""
        if self.towers:
            both = self.backbone(torch.cat([fixed, moving]))
            features = torch.cat(both.chunk(2), dim=1)
        else:
            features = self.backbone(torch.cat([fixed, moving], dim=1))
        return self.head(features).double()

    def forward(
        self, fixed: torch.Tensor, moving: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Matrix ``(B, 4, 4)`` float64 and its parameters."""
        parameters = self.parameters_between(fixed, moving)
        return matrix_of(parameters, self.family, self.frame), parameters


def centres_of_mass(
    maps: torch.Tensor, half_width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keypoints of feature maps: their centres of mass, and their masses.

    Args:
        maps: ``(B, K, *shape)``; negative values count as 0.
        half_width: ``(d,)`` mm, half the extent of the volume.

    Returns:
        Points ``(B, K, d)`` float64, mm from the volume's centre (the centre itself for an empty
        map), and masses ``(B, K)`` float64, the means of the maps.
    """
    mass = maps.double().clamp_min(0)
    d = mass.dim() - 2
    total = mass.flatten(2).sum(2)
    points = []
    for axis in range(d):
        n = mass.shape[2 + axis]
        along = mass.sum([2 + other for other in range(d) if other != axis])
        where = (torch.arange(n, dtype=torch.float64, device=mass.device) + 0.5) * 2 / n - 1
        # Half a unit in the last place of a map's sum, so that 0 / 0 gives 0.
        points.append((along * where).sum(2) / total.clamp_min(1e-12) * half_width[axis])
    return torch.stack(points, dim=2), mass.flatten(2).mean(2)


class KeypointEstimator(nn.Module):
    """Features of each image, their centres of mass, and the least-squares matrix between them.

    Both images pass through the same weights, and the least squares are symmetric: swapping the
    pair inverts the matrix exactly (but see `keypoints` for anisotropic scales).

    Wang et al., KeyMorph, MedIA 2023; Hoffmann et al., SynthMorph, Imaging Neuroscience 2024.

    Args:
        frame: of the network's grid.
        family: transform model.
        keypoints: number of keypoints.
        backbone: ``unet`` (features at full resolution) or ``resnet`` (at a quarter).
        width: of the backbone; 1: the original ResNet-18, or a U-Net with 64 to 256 channels.
        ridge: see `fit_matrix`.
    """

    def __init__(
        self,
        frame: Frame,
        family: str,
        keypoints: int = 32,
        backbone: str = "unet",
        width: float = 0.25,
        ridge: float = 1e-4,
    ) -> None:
        super().__init__()
        d = frame.spatial_dims
        self.frame = frame
        self.family = family
        self.ridge = ridge
        self.features: nn.Module
        if backbone == "unet":
            n = [max(8, round(width * full)) for full in (64, 64, 128, 128, 256, 64)]
            self.features = BasicUNet(
                d, 1, keypoints, n, norm=("group", {"num_groups": 4}), act=("leakyrelu", {})
            )
        elif backbone == "resnet":
            whole = _resnet(d, 1, width, stride=2)
            *_, shift = whole.layer2.parameters()  # of the last normalisation, one per channel
            channels = len(shift)
            last = (nn.Conv3d if d == 3 else nn.Conv2d)(channels, keypoints, kernel_size=1)
            self.features = nn.Sequential(
                whole.conv1, whole.bn1, whole.act, whole.layer1, whole.layer2, last
            )
        else:
            raise ValueError(f"backbone must be 'unet' or 'resnet', got {backbone!r}")
        # Without this shift a map that is bright everywhere outweighs all others. Its centre of
        # mass is always the middle of the volume, so too few points remain, and no gradient
        # corrects it.
        norm = nn.InstanceNorm3d if d == 3 else nn.InstanceNorm2d
        self.norm = norm(keypoints, affine=True)
        nn.init.constant_(self.norm.bias, _RECTIFIED_AT)

    def fit(self, fixed: torch.Tensor, moving: torch.Tensor) -> KeypointFit:
        """Local matrices ``(B, d + 1, d + 1)`` and which model the keypoints could determine."""
        maps = self.norm(self.features(torch.cat([fixed, moving])).float())
        with torch.autocast(maps.device.type, enabled=False):
            points, mass = centres_of_mass(maps, self.frame.half_width.to(maps.device))
            first, second = points.chunk(2)
            m, n = mass.chunk(2)
            weights = m * n
            # A keypoint that is missing in one image counts in neither.
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
            return fit_matrix(first, second, weights, self.family, self.ridge)

    def forward(
        self, fixed: torch.Tensor, moving: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Matrix ``(B, 4, 4)`` float64; no parameters."""
        local = self.fit(fixed, moving).matrix
        d = self.frame.spatial_dims
        if d == 3:
            return local, None
        whole = torch.eye(4, dtype=local.dtype, device=local.device).repeat(len(local), 1, 1)
        keep = [*range(d), 3]
        rows = torch.tensor(keep, device=local.device)
        spread = torch.zeros(4, d + 1, dtype=local.dtype, device=local.device)
        spread[rows, torch.arange(d + 1, device=local.device)] = 1
        third = torch.zeros_like(whole)
        third[:, 2, 2] = 1
        return spread @ local @ spread.T + third, None
