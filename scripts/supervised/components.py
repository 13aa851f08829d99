"""What the configurations name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.errors import CheckpointError
from scripts.settings.train_fields import TrainFieldsConfig
from scripts.supervised.field_network import FieldNetwork
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.loading import FieldPairs, open_field_pairs
from scripts.supervised.saving import (
    check_places,
    load_field_network,
    network_path,
    saved_optimizer,
)
from scripts.supervised.training import FieldLoss, field_losses

__all__ = ["field_optimizer", "global_stage_of", "open_pairs", "shaped_losses"]


def open_pairs(
    settings: TrainFieldsConfig, ckpt_dir: str | Path, written: Sequence[str | Path] = ()
) -> FieldPairs:
    """The pairs to learn from, after everything else that the settings name was checked.

    Raises:
        ConfigurationError: a perceptual loss has no weights, or the machine lacks the device.
        CheckpointError: a network that the settings name can't be read.
        StorageError: an existing network may not be replaced, or a folder can't be written.
        CohortError: the pairs can't be used.
    """
    field_losses(settings)
    inputs = [path for path in (settings.pairs, settings.validation) if path is not None]
    check_places(network_path(ckpt_dir, settings.network), settings.overwrite, inputs)
    global_stage_of(settings)
    return open_field_pairs(settings, written)


def shaped_losses(settings: TrainFieldsConfig, pairs: FieldPairs) -> FieldLoss:
    """The losses for images of the pairs' size."""
    return field_losses(settings, pairs.shape)


def global_stage_of(settings: TrainFieldsConfig) -> GlobalNetwork | None:
    """The global network on whose images a local one learns; None for other networks.

    Raises:
        CheckpointError: it can't be read.
    """
    if settings.network != "local" or settings.global_model is None:
        return None
    network = load_field_network(settings.global_model, "global")
    assert isinstance(network, GlobalNetwork)
    device = torch.device(settings.device)
    return network.to(device).requires_grad_(False)


def field_optimizer(network: FieldNetwork, settings: TrainFieldsConfig) -> torch.optim.Adam:
    """Adam, with the moments of the network that training continues from.

    Raises:
        CheckpointError: those are of another network.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.optimizer.lr)
    if settings.start is not None:
        state = saved_optimizer(settings.start)
        if state is not None:
            try:
                optimizer.load_state_dict(state)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{settings.start}: its optimiser is of another network: {error}"
                ) from error
            for group in optimizer.param_groups:
                group["lr"] = settings.optimizer.lr
    return optimizer
