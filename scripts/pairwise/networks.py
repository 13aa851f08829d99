"""A network of pairs: what its checkpoint says of it, and how it is read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from scripts.networks.described import FORMAT, DescribedNetwork, load_described
from scripts.pairwise.images import PairImages
from scripts.pairwise.network_grid import WorkingGrid
from scripts.settings.pairwise import FoldedConfig

__all__ = ["load_pair_network", "pair_description"]

Network = TypeVar("Network", bound=DescribedNetwork)
Settings = TypeVar("Settings", bound=FoldedConfig)


def pair_description(images: PairImages, settings: FoldedConfig, **specific: Any) -> dict[str, Any]:
    """The description of a network in its checkpoint.

    Args:
        images: that it learns from.
        settings: of the training.
        specific: further entries of this kind of network.
    """
    return {
        "format": FORMAT,
        "grid": asdict(images.grid),
        "settings": settings.as_dict(),
        **specific,
        "trained_on": [item["subject"] for item in images.training()],
        "cohort": images.identity(),
    }


def load_pair_network(
    path: str | Path,
    kind: str,
    part: str,
    schema: type[Settings],
    build: Callable[[WorkingGrid, Settings, dict[str, Any]], Network],
) -> Network:
    """Load a published network, ready for use.

    Args:
        path: of its state dict.
        kind: what it is called in messages, without an article.
        part: see `load_described`.
        schema: of the settings that it was trained with.
        build: from its grid, settings and description to the network.

    Raises:
        CheckpointError: see `load_described`.
    """

    def described(description: dict[str, Any], _: dict[str, torch.Tensor]) -> Network:
        settings = schema.load(description["settings"])
        return build(WorkingGrid.of_dict(description["grid"]), settings, description)

    return load_described(path, kind, part, described)
