"""The weights that ship: their file, reading and writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.errors import CheckpointError
from scripts.networks.checkpoint import save_checkpoint
from scripts.networks.described import FORMAT, load_described, weights_identity
from scripts.shipped.network import PairNetwork

__all__ = ["KIND", "SHIPPED", "load_pair_network", "save_pair_network"]

SHIPPED = Path(__file__).resolve().parents[2] / "bundle" / "weights" / "registration.pt"
"""The network that came with the installation."""
KIND = "pair registration"


def save_pair_network(
    network: PairNetwork, path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write a network with all that a reader must know, and the checksum of its weights.

    Args:
        network: as trained.
        path: of the file.
        about: further facts: its training, its licence.
    """
    arguments = network.unet.arguments
    described = PairNetwork(
        arguments["enc_features"],
        arguments["dec_features"],
        network.passes,
        description={
            **dict(about or {}),
            "format": FORMAT,
            "kind": KIND,
            "enc_features": arguments["enc_features"],
            "dec_features": arguments["dec_features"],
            "passes": list(network.passes),
            "sha256": weights_identity(network),
        },
    )
    described.unet.load_state_dict(network.unet.state_dict())
    save_checkpoint(described.state_dict(), path)


def load_pair_network(path: str | Path = SHIPPED) -> PairNetwork:
    """A network written by `save_pair_network`, in evaluation.

    Raises:
        CheckpointError: the file is missing, is no such network, or its weights aren't those
            that its checksum was made of.
    """

    def build(description: dict[str, Any], weights: dict[str, torch.Tensor]) -> PairNetwork:
        if description["kind"] != KIND:
            raise ValueError(f"its kind is {description['kind']!r}")
        return PairNetwork(
            description["enc_features"],
            description["dec_features"],
            description["passes"],
            description=description,
        )

    network = load_described(path, "registration network", "unet", build)
    recorded = network.description["sha256"]
    found = weights_identity(network)
    if found != recorded:
        raise CheckpointError(
            f"{path}: its weights have the checksum {found[:16]}, recorded is "
            f"{str(recorded)[:16]}; "
            "the file is damaged or was changed: take it from the bundle again"
        )
    return network
