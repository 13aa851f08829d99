"""The network that a cohort's atlas starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.atlas.published_model import published_network
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.checkpoint import load_checkpoint
from scripts.networks.described import description_in, weights_identity
from scripts.networks.unet import RegistrationUNet
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.shipped.network import PairNetwork
from scripts.shipped.pair_unet import FIELD_RESOLUTION
from scripts.shipped.weights import SHIPPED, load_pair_network

__all__ = ["InitialNetwork", "open_initial", "require_volumes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialNetwork:
    """What a cohort's network is at its start: random weights, or those of another network.

    Attributes:
        in_channels: of the U-Net.
        enc_features: of the U-Net.
        dec_features: of the U-Net.
        passes: that the network knows.
        weights: of the U-Net; None: random ones.
        described: what the model says of its origin; nothing for random weights.
    """

    in_channels: int
    enc_features: list[int]
    dec_features: list[int]
    passes: list[int]
    weights: Mapping[str, torch.Tensor] | None = None
    described: Mapping[str, Any] | None = None

    def load_into(self, unet: RegistrationUNet) -> None:
        """Give a U-Net these weights.

        Raises:
            ConfigurationError: it was built otherwise.
        """
        if self.weights is None:
            return
        try:
            unet.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ConfigurationError(
                "network_def#unet is built otherwise than the network that "
                "learned_atlas.model.initial names, whose features alone fit; leave its arguments "
                "as they are, or set learned_atlas#model#initial null"
            ) from error


def open_initial(settings: LearnedAtlasConfig, spatial_dims: int) -> InitialNetwork:
    """The network that ``learned_atlas.model.initial`` names.

    Args:
        settings: of the run.
        spatial_dims: of the cohort's maps.

    Raises:
        ConfigurationError: the network doesn't fit the cohort or the settings.
        CheckpointError: its file can't be read.
    """
    model = settings.model
    if model.initial is None:
        return InitialNetwork(
            2 * model.channels,
            list(model.enc_features),
            list(model.dec_features),
            list(model.passes_from_nothing),
        )
    shipped = model.initial == "shipped"
    path = SHIPPED if shipped else Path(model.initial)
    setting = f"learned_atlas.model.initial = {model.initial!r}"
    if not shipped and not path.exists():
        raise CheckpointError(f"{setting}: there is no such file")
    description = description_in(load_checkpoint(path))
    of_pairs = description.get("kind") == PairNetwork.kind
    described = _of_pairs(path) if of_pairs else _of_atlas(path)
    weights = described.pop("weights")
    if described["inputs"] != "images":
        require_volumes(model.initial, spatial_dims)
    if described["inputs"] == "images" and described["in_channels"] != 2 * model.channels:
        raise ConfigurationError(
            f"{setting}: that network registers {described['in_channels'] // 2} channels at once, "
            f"and learned_atlas.model.channels is {model.channels}; name another one, or null"
        )
    if described["field_resolution"] != model.field_resolution:
        raise ConfigurationError(
            f"{setting}: that network makes fields at 1/{described['field_resolution']} of the "
            f"resolution; set learned_atlas#model#field_resolution {described['field_resolution']}"
        )
    in_channels = described.pop("in_channels")
    described["passes"] = list(model.passes or described["passes"])
    described["name"] = "shipped" if shipped else path.name
    logger.info("initial network: %s (%s)", described["name"], described["sha256"][:12])
    return InitialNetwork(
        in_channels,
        described["enc_features"],
        described["dec_features"],
        described["passes"],
        weights,
        described,
    )


def require_volumes(initial: str, spatial_dims: int) -> None:
    """Check that the maps have the dimensions of the network that ships.

    Raises:
        ConfigurationError: they are planes.
    """
    if spatial_dims != 3:
        raise ConfigurationError(
            f"learned_atlas.model.initial = {initial!r}: that network registers volumes, and the "
            "cohort's maps are planes; set learned_atlas#model#initial null"
        )


def _of_pairs(path: Path) -> dict[str, Any]:
    """What a network of `PairTraining` is."""
    network = load_pair_network(path)
    return {
        "inputs": network.inputs.name,
        "in_channels": network.inputs.channels(3),
        "enc_features": list(network.unet.arguments["enc_features"]),
        "dec_features": list(network.unet.arguments["dec_features"]),
        "field_resolution": FIELD_RESOLUTION,
        "passes": list(network.passes),
        "sha256": weights_identity(network),
        "weights": network.unet.state_dict(),
    }


def _of_atlas(path: Path) -> dict[str, Any]:
    """What the network of a published atlas is, of whatever cohort."""
    network = published_network(path)
    arguments = network.unet.arguments
    return {
        "inputs": "images" if network.inputs is None else network.inputs.name,
        "in_channels": arguments["in_channels"],
        "enc_features": list(arguments["enc_features"]),
        "dec_features": list(arguments["dec_features"]),
        "field_resolution": network.field_resolution,
        "passes": list(network.passes),
        "sha256": weights_identity(network),
        "weights": network.unet.state_dict(),
    }
