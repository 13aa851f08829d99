"""Distance of images by the features of a network that was trained on photographs.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
The weights are a file that the user provides: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.checkpoint import load_checkpoint

__all__ = ["PerceptualLoss", "load_perceptual_loss"]

_MEAN, _SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS's inputs, -1 to 1

# What each slice begins with (0: nothing, 2 or 3: a pooling of that width), and its convolutions:
# place in the network, channels in and out, width, stride, padding.
_VGG = (
    (0, ((0, 3, 64, 3, 1, 1), (2, 64, 64, 3, 1, 1))),
    (2, ((5, 64, 128, 3, 1, 1), (7, 128, 128, 3, 1, 1))),
    (2, ((10, 128, 256, 3, 1, 1), (12, 256, 256, 3, 1, 1), (14, 256, 256, 3, 1, 1))),
    (2, ((17, 256, 512, 3, 1, 1), (19, 512, 512, 3, 1, 1), (21, 512, 512, 3, 1, 1))),
    (2, ((24, 512, 512, 3, 1, 1), (26, 512, 512, 3, 1, 1), (28, 512, 512, 3, 1, 1))),
)
_ALEX = (
    (0, ((0, 3, 64, 11, 4, 2),)),
    (3, ((3, 64, 192, 5, 1, 2),)),
    (3, ((6, 192, 384, 3, 1, 1),)),
    (0, ((8, 384, 256, 3, 1, 1),)),
    (0, ((10, 256, 256, 3, 1, 1),)),
)
_NETWORKS = {"vgg": _VGG, "alex": _ALEX}


class PerceptualLoss(_Loss):
    """Squared distance of unit feature vectors, summed over five depths, mean over the image.

    Args:
        network: ``vgg`` or ``alex``.
        linear: weigh the channels as people judged (``net-lin``); else all weigh 1 (``net``).
    """

    def __init__(self, network: str = "vgg", linear: bool = True) -> None:
        super().__init__()
        if network not in _NETWORKS:
            raise ValueError(f"network must be one of {', '.join(_NETWORKS)}, got {network!r}")
        self.linear = linear
        self.slices = nn.ModuleList()
        self.weights = nn.ParameterList()
        for pooling, convolutions in _NETWORKS[network]:
            layers: list[nn.Module] = []
            if pooling:
                layers.append(nn.MaxPool2d(pooling, stride=2))
            channels = 0
            for _, n_in, channels, width, stride, padding in convolutions:
                layers += [nn.Conv2d(n_in, channels, width, stride, padding), nn.ReLU()]
            self.slices.append(nn.Sequential(*layers))
            self.weights.append(nn.Parameter(torch.ones(1, channels, 1, 1)))
        self.network = network
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(_SPREAD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    mean: torch.Tensor
    spread: torch.Tensor

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of an `lpips.LPIPS` of the same network.

        Raises:
            KeyError: one is missing.
            RuntimeError: one has another shape.
        """
        for depth, (_, convolutions) in enumerate(_NETWORKS[self.network]):
            layers = [one for one in self.slices[depth].children() if isinstance(one, nn.Conv2d)]
            for layer, (place, *_) in zip(layers, convolutions, strict=True):
                stem = f"net.slice{depth + 1}.{place}"
                layer.load_state_dict(
                    {part: weights[f"{stem}.{part}"] for part in ("weight", "bias")}
                )
            if self.linear:
                given = weights[f"lin{depth}.model.1.weight"]
                if given.shape != self.weights[depth].shape:
                    raise RuntimeError(f"lin{depth}.model.1.weight has shape {tuple(given.shape)}")
                self.weights[depth].data.copy_(given)

    def forward(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Loss of ``predicted`` against ``true``, both ``(B, 1, *shape)`` from 0 to 1.

        Of volumes the mean over their planes across the first axis.
        """
        pair = [self._as_pictures(one) for one in (predicted, true)]
        features = [(one - self.mean) / self.spread for one in pair]
        total = predicted.new_zeros(())
        for part, weight in zip(self.slices, self.weights, strict=True):
            features = [part(one) for one in features]
            first, second = (_unit(one) for one in features)
            total = total + ((first - second).square() * weight).sum(1).mean()
        return total

    @staticmethod
    def _as_pictures(image: torch.Tensor) -> torch.Tensor:
        """``(N, 3, rows, columns)`` from -1 to 1."""
        planes = image.float()
        if planes.dim() == 5:
            planes = planes.transpose(1, 2).flatten(0, 1)
        return (2 * planes - 1).expand(-1, 3, -1, -1)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-20).sqrt()


def load_perceptual_loss(name: str, path: str | Path | None, key: str) -> PerceptualLoss:
    """A perceptual loss by its name, with the weights of a file.

    Args:
        name: ``perceptual_loss_{net,net-lin}_{alex,vgg}``.
        path: of the state dict of an `lpips.LPIPS`.
        key: of the setting that names it, for messages.

    Raises:
        ConfigurationError: the path is missing.
        CheckpointError: the file can't be read, or has other weights.
    """
    _, kind, network = name.rsplit("_", 2)
    if path is None:
        raise ConfigurationError(
            f"{name} needs a weights file, and {key} is null; make one on a machine with "
            "internet access by "
            f'`pip install lpips` and `python -c "import lpips, torch; '
            f"torch.save(lpips.LPIPS(net='{network}').state_dict(), 'lpips_{network}.pt')\"`, then "
            f"set {key} to its path"
        )
    loss = PerceptualLoss(network, linear=kind == "net-lin")
    checkpoint = load_checkpoint(path)
    try:
        loss.take(checkpoint)
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: has no weights of lpips.LPIPS(net='{network}'), which {name} needs: {reason}"
        ) from error
    return loss.eval()
