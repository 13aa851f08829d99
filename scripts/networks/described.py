"""Networks that tell of themselves in their checkpoints, and how such a file is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from scripts.errors import (
    CheckpointError,
)
from scripts.networks.checkpoint import load_checkpoint

__all__ = ["DescribedNetwork", "load_described", "weights_identity"]

FORMAT = 1
"""Of the description; a network's own ``format`` is this one."""


class DescribedNetwork(nn.Module):
    """A network whose state dict holds all that a reader must know to build it again.

    Args:
        description: JSON-able; travels in the state dict as the buffer ``described``.
    """

    described: torch.Tensor

    def __init__(self, description: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        text = json.dumps(dict(description or {}), sort_keys=True).encode()
        self.register_buffer("described", torch.frombuffer(bytearray(text), dtype=torch.uint8))

    @property
    def description(self) -> dict[str, Any]:
        """What the checkpoint says of itself."""
        return json.loads(bytes(self.described.cpu().numpy()).decode())


Built = TypeVar("Built", bound=DescribedNetwork)


def load_described(
    path: str | Path, kind: str, part: str, build: Callable[[dict[str, Any]], Built]
) -> Built:
    """A published network, ready to be asked.

    Args:
        path: of its state dict.
        kind: what it is called in messages, with its article.
        part: name of a module that such networks have.
        build: from a description to the network.

    Raises:
        CheckpointError: the file isn't there, is damaged, or holds no such network.
    """
    found = load_checkpoint(path)
    described = found.get("described")
    has_part = any(str(key).startswith(f"{part}.") for key in found)
    if not isinstance(described, torch.Tensor) or not has_part:
        raise CheckpointError(f"{path}: holds no {kind}")
    try:
        description = json.loads(bytes(described.numpy()).decode())
        if description["format"] != FORMAT:
            raise KeyError("format")
        network = build(description)
        network.load_state_dict(found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: holds no {kind} of this version: {reason}") from error
    return network.eval()


def weights_identity(network: nn.Module) -> str:
    """SHA-256 over the bytes of everything the network learned, its description left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name != "described":
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
