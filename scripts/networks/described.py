"""Networks that describe themselves in their checkpoints, and how such a file is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from scripts.errors import CheckpointError
from scripts.networks.checkpoint import load_checkpoint
from scripts.runtime.plain_data import parse_json

__all__ = ["DescribedNetwork", "description_in", "load_described", "weights_identity"]

FORMAT = 1
"""Format of the description; a network's ``format`` entry is this number."""


def description_in(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The description in a state dict; empty if it isn't that of a `DescribedNetwork`."""
    if "described" not in state_dict:
        return {}
    text = bytes(state_dict["described"].cpu().numpy()).decode()
    result = parse_json(text)
    if not isinstance(result, dict):
        raise TypeError(f"a description that is {type(result).__name__}, no mapping")
    return result


class DescribedNetwork(nn.Module):
    """A network whose state dict contains everything that is needed to build it again.

    Args:
        description: JSON-able; stored in the state dict as the buffer ``described``.
    """

    described: torch.Tensor

    def __init__(self, description: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        text = json.dumps(dict(description or {}), sort_keys=True).encode()
        self.register_buffer("described", torch.frombuffer(bytearray(text), dtype=torch.uint8))

    @property
    def description(self) -> dict[str, Any]:
        """The description in the checkpoint."""
        return description_in({"described": self.described})


Built = TypeVar("Built", bound=DescribedNetwork)


def load_described(
    path: str | Path,
    kind: str,
    part: str,
    build: Callable[[dict[str, Any], dict[str, torch.Tensor]], Built],
) -> Built:
    """Load a published network, ready for use.

    Args:
        path: of its state dict.
        kind: its name in messages, without an article.
        part: name of a module, parameter or buffer that all such networks have.
        build: makes the network from a description and the weights, whose shapes it may need.

    Raises:
        CheckpointError: the file doesn't exist, is damaged, isn't such a network, or has a format
            that this version can't read.
    """
    checkpoint = load_checkpoint(path)
    if "described" not in checkpoint or part not in {str(key).split(".")[0] for key in checkpoint}:
        raise CheckpointError(f"{path}: contains no {kind} of this bundle")
    try:
        description = description_in(checkpoint)
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: written in format {description['format']!r}, this version reads {FORMAT}"
            )
        network = build(description, checkpoint)
        network.load_state_dict(checkpoint)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        lacking = "its description lacks " if isinstance(error, KeyError) else ""
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: contains no {kind} that can be read; damaged or foreign: {lacking}{reason}"
        ) from error
    return network.eval()


def weights_identity(network: nn.Module) -> str:
    """SHA-256 of all learned weights, without the description."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name != "described":
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
