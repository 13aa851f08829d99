"""Reads checkpoints: tensors and plain values, never code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from scripts.errors import CheckpointError
from scripts.runtime.input_files import FileError, check_file

__all__ = ["load_checkpoint", "load_weights"]


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values; refuse one that contains code.

    Raises:
        CheckpointError: it can't be loaded; the message names the file.
    """
    _check_container(Path(path))
    try:
        found = torch.load(Path(path), map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except pickle.UnpicklingError as error:
        # Torch's message advises to load it anyway.
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: it is damaged, or contains more than "
            "tensors and plain values"
        ) from error
    except Exception as error:  # torch raises many exceptions on foreign or damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: contains a {type(found).__name__}, not a checkpoint")
    return found


def _check_container(path: Path) -> None:
    """Refuse files that would block torch, or that unpack to any size; torch never compresses."""
    if not os.path.lexists(path):
        return  # reported by the function that reads it
    try:
        check_file(path)
        with zipfile.ZipFile(path) as parts:
            packed = [one for one in parts.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except FileError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: {error.reason}"
        ) from error
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # not a zip file, or a damaged one: torch decides what it is
    if packed:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: its parts are compressed, which torch "
            "never does"
        )


def load_weights(network: torch.nn.Module, found: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a network.

    Args:
        network: of this run; for an `AtlasNetwork` the message says which template differs.
        found: the checkpoint, with the weights under ``network``.
        path: of its file, for the message.

    Raises:
        CheckpointError: the weights are of another network; the message says what differs.
    """
    state = found.get("network")
    own_template = network.state_dict().get("template")
    template = state.get("template") if isinstance(state, dict) else None
    if not isinstance(state, dict) or type(own_template) is not type(template):
        raise CheckpointError(f"{path}: contains no weights of this run's network")
    advice = "set resume to false to discard the unfinished run"
    ours, theirs = (
        tuple(one.shape) if isinstance(one, torch.Tensor) else ()
        for one in (own_template, template)
    )
    whats = ("templates (K)", "channels")
    for what, own, other in zip(whats, ours, theirs, strict=False):
        if own != other:
            raise CheckpointError(f"{path}: has {other} {what}, this run has {own}; {advice}")
    if ours != theirs:
        raise CheckpointError(
            f"{path}: has a grid of {_by(theirs[2:])} voxels, this run's box has "
            f"{_by(ours[2:])}; {advice}"
        )
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:2]]
        raise CheckpointError(
            f"{path}: has a network with other settings ({' '.join(lines)[:200]}); {advice}"
        ) from error


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
