"""Reading checkpoints: tensors and plain values, never code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from scripts.errors import CheckpointError, StorageError
from scripts.runtime.input_files import FileError, check_file

__all__ = ["check_earlier_model", "load_checkpoint", "load_weights"]


_NAMES = 1 << 20  # bytes at the beginning of a checkpoint that hold the names of its tensors


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values; one with code in it is refused.

    Raises:
        CheckpointError: naming the file.
    """
    _check_container(Path(path))
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


def _check_container(path: Path) -> None:
    """Refuse what torch would wait for, or unpack to any size; it packs nothing itself."""
    if not os.path.lexists(path):
        return  # told by who reads it
    try:
        check_file(path)
        with zipfile.ZipFile(path) as parts:
            packed = [one for one in parts.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except FileError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: {error.reason}"
        ) from error
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no zip, or a damaged one: torch knows what else it may be
    if packed:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: its parts are compressed, which no "
            "checkpoint's are"
        )


def check_earlier_model(path: Path) -> None:
    """Make sure that a file that is about to be replaced is a model of this bundle, if it exists.

    A damaged one counts as well: the names of its tensors stand at its beginning.

    Raises:
        StorageError: it is something else.
    """
    if not os.path.lexists(path):
        return
    try:
        check_file(path)
        with path.open("rb") as file:
            start = file.read(_NAMES)
    except (FileError, OSError):
        start = b""
    if not (start.startswith(b"PK") and b"described" in start):
        raise StorageError(
            f"{path}: would be replaced, but is no model of this bundle; move it elsewhere, or "
            "choose another --ckpt_dir"
        )


def load_weights(network: torch.nn.Module, found: dict[str, Any], path: Path) -> None:
    """Take over a checkpoint's weights.

    Args:
        network: the run's; of an `AtlasNetwork` the message tells whose template differs.
        found: the checkpoint, its weights under ``network``.
        path: of its file, for the message.

    Raises:
        CheckpointError: if they are of another network; the message says in what it differs.
    """
    state = found.get("network")
    own_template = network.state_dict().get("template")
    template = state.get("template") if isinstance(state, dict) else None
    if not isinstance(state, dict) or type(own_template) is not type(template):
        raise CheckpointError(f"{path}: holds no weights of this run's network")
    advice = "throw the unfinished run away by setting resume to false"
    ours, theirs = (
        tuple(one.shape) if isinstance(one, torch.Tensor) else ()
        for one in (own_template, template)
    )
    whats = ("templates (K)", "channels")
    for what, own, other in zip(whats, ours, theirs, strict=False):
        if own != other:
            raise CheckpointError(f"{path}: is of {other} {what}, this run has {own}; {advice}")
    if ours != theirs:
        raise CheckpointError(
            f"{path}: is of a grid of {_by(theirs[2:])} voxels, this run's box has "
            f"{_by(ours[2:])}; {advice}"
        )
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:2]]
        raise CheckpointError(
            f"{path}: is of a network of other settings ({' '.join(lines)[:200]}); {advice}"
        ) from error


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
