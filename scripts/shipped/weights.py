"""The weights that ship: their files, reading and writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from scripts.errors import CheckpointError
from scripts.networks.checkpoint import save_checkpoint
from scripts.networks.described import FORMAT, load_described, weights_identity
from scripts.shipped.affine_network import AffinePairNetwork
from scripts.shipped.network import PairNetwork
from scripts.shipped.pair_unet import PairUNet

__all__ = [
    "SHIPPED",
    "SHIPPED_AFFINE",
    "load_affine_pair_network",
    "load_pair_network",
    "save_pair_network",
]

_WEIGHTS = Path(__file__).resolve().parents[2] / "bundle" / "weights"
SHIPPED = _WEIGHTS / "registration.pt"
"""The registration network that came with the installation."""
SHIPPED_AFFINE = _WEIGHTS / "affine.pt"
"""The affine network that came with the installation."""

Shipped = TypeVar("Shipped", bound=PairUNet)


def save_pair_network(
    network: PairUNet, path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write a network with all that a reader must know, and the checksum of its weights.

    Args:
        network: as trained, of either kind.
        path: of the file.
        about: further facts: its training, its licence.
    """
    arguments = network.unet.arguments
    described = type(network)(
        arguments["enc_features"],
        arguments["dec_features"],
        network.passes,
        description={
            **dict(about or {}),
            "format": FORMAT,
            "kind": network.kind,
            "enc_features": arguments["enc_features"],
            "dec_features": arguments["dec_features"],
            "passes": list(network.passes),
            "inputs": network.inputs.name,
            "sha256": weights_identity(network),
        },
        inputs=network.inputs.name,
    )
    described.unet.load_state_dict(network.unet.state_dict())
    save_checkpoint(described.state_dict(), path)


def load_pair_network(path: str | Path = SHIPPED) -> PairNetwork:
    """A registration network written by `save_pair_network`, in evaluation.

    Raises:
        CheckpointError: the file is missing, is no such network, or its weights aren't those
            that its checksum was made of.
    """
    return _load(path, PairNetwork)


def load_affine_pair_network(path: str | Path = SHIPPED_AFFINE) -> AffinePairNetwork:
    """An affine network written by `save_pair_network`, in evaluation.

    Raises:
        CheckpointError: see `load_pair_network`.
    """
    return _load(path, AffinePairNetwork)


def _load(path: str | Path, made: type[Shipped]) -> Shipped:
    def build(description: dict[str, Any], weights: dict[str, torch.Tensor]) -> Shipped:
        if description["kind"] != made.kind:
            raise ValueError(f"its kind is {description['kind']!r}")
        return made(
            description["enc_features"],
            description["dec_features"],
            description["passes"],
            description=description,
            # Files of earlier versions don't name it.
            inputs=description.get("inputs", "forces"),
        )

    network = load_described(path, made.called, "unet", build)
    recorded = network.description["sha256"]
    identity = weights_identity(network)
    if identity != recorded:
        raise CheckpointError(
            f"{path}: its weights have the checksum {identity[:16]}, recorded is "
            f"{str(recorded)[:16]}; "
            "the file is damaged or was changed: take it from the bundle again"
        )
    return network
