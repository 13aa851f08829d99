"""Reading checkpoints: tensors and plain values, never code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from scripts.errors import CheckpointError

__all__ = ["load_checkpoint"]


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values; one with code in it is refused.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        found = torch.load(Path(path), map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except pickle.UnpicklingError as error:
        # Torch's own text advises to load it all the same.
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: it is damaged, or holds something else "
            "than tensors and plain values"
        ) from error
    except Exception as error:  # torch raises many kinds for a foreign or damaged file
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not a checkpoint")
    return found
