"""The network that the elastic part of a refinement starts from."""

from __future__ import annotations

from scripts.elastic.trained import load_trained_network
from scripts.networks.checkpoint import load_checkpoint
from scripts.networks.described import description_in
from scripts.networks.precision import open_device
from scripts.registration.field_gain import FieldFinder
from scripts.registration.network_field import NetworkField, pair_network
from scripts.settings.refine import NETWORK, RefineConfig
from scripts.shipped.network import PairNetwork

__all__ = ["open_elastic_start"]


def open_elastic_start(settings: RefineConfig) -> FieldFinder | None:
    """The network that ``refine#elastic_start`` names; None if it names none.

    Its file was written by `train-registration` or `train-elastic` and records which.

    Raises:
        CheckpointError: the file can't be read, or is no such network.
        ConfigurationError: the machine doesn't have the device.
    """
    if not settings.starts_from_network:
        return None
    device = open_device(settings.device, settings.key("device"))
    named = settings.elastic_start
    if named is None or named == NETWORK:
        return NetworkField(pair_network(), settings.contrast)
    if description_in(load_checkpoint(named)).get("kind") == PairNetwork.kind:
        return NetworkField(pair_network(named), settings.contrast)
    return load_trained_network(named, settings.contrast).to(device)
