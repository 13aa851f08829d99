"""Checkpoints: tensors and plain values, never code, with a checksum of every byte.

The checksum is the comment at the end of the zip file that torch writes: ``torch.load`` and all
that is built on it read the file as any other.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from scripts.errors import CheckpointError, StorageError
from scripts.runtime.input_files import FileError, check_file
from scripts.runtime.storage import write_whole

__all__ = [
    "check_earlier_model",
    "checkpoint_bytes",
    "load_checkpoint",
    "load_latest",
    "load_weights",
    "previous_of",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

_NAMES = 1 << 20  # bytes at the beginning of a checkpoint that hold the names of its tensors
_SEAL = b"tract_atlas sha256 "  # followed by 64 hexadecimal digits
_END = struct.Struct("<4s4H2LH")  # of a zip file: its last number is the length of the comment
_END_SIGNATURE = b"PK\x05\x06"


def save_checkpoint(values: Any, path: str | Path, keep_previous: bool = False) -> None:
    """Write a checkpoint with its checksum, whole.

    Args:
        values: tensors and plain values.
        path: of the file.
        keep_previous: let the checkpoint that stands there stay, as `previous_of` names it.

    Raises:
        StorageError: it can't be written; what stood there stays.
    """
    target = Path(path)
    with write_whole(target) as staged:
        torch.save(values, staged)
        with staged.open("rb+") as file:
            _seal(file)
        if keep_previous and target.exists():
            target.replace(previous_of(target))


def checkpoint_bytes(values: Any) -> bytes:
    """A checkpoint with its checksum, as `save_checkpoint` writes it."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    _seal(buffer)
    return buffer.getvalue()


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_latest(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``; the one before it if that is damaged or missing; or None.

    Raises:
        CheckpointError: it is damaged and there is none before it.
    """
    previous = previous_of(path)
    if not path.exists():  # a kill between two renames leaves only the one before it
        return load_checkpoint(previous) if previous.exists() else None
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if not previous.exists():
            raise
        logger.warning("%s; the checkpoint before it is used, %s", error, previous)
        return load_checkpoint(previous)


def _seal(file: BinaryIO) -> None:
    """Append the SHA-256 of a zip file to it as its comment."""
    length = len(_SEAL) + 64
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", length))
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(_SEAL + digest)


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of so many bytes from the beginning, in hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            break
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode("ascii")


def _check_seal(file: BinaryIO) -> None:
    """Make sure that a checkpoint's bytes are those that were written.

    A file without a comment was written before there were checksums, or by another program.

    Raises:
        ValueError: they aren't.
    """
    if file.read(2) != b"PK":
        return  # torch's format before zip files
    size = file.seek(0, os.SEEK_END)
    length = len(_SEAL) + 64
    file.seek(max(0, size - _END.size))
    if _ends(file.read(_END.size), 0):
        return
    start = max(0, size - length)
    file.seek(max(0, start - _END.size))
    tail = file.read()
    if not (_ends(tail[: _END.size], length) and tail[_END.size :].startswith(_SEAL)):
        raise ValueError("its end is missing or damaged")
    if _digest(file, start) != tail[_END.size + len(_SEAL) :]:
        raise ValueError("its content is not what was written (checksum)")


def _ends(record: bytes, comment: int) -> bool:
    """Whether these bytes are a zip file's last record, announcing a comment of a length."""
    if len(record) != _END.size:
        return False
    signature, *_, length = _END.unpack(record)
    return bool(signature == _END_SIGNATURE and length == comment)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values; refuse one that contains code.

    Raises:
        CheckpointError: it can't be loaded; the message names the file.
    """
    _check_container(Path(path))
    try:
        # One opening: the bytes that are loaded are those that were looked at.
        with Path(path).open("rb") as file:
            _check_seal(file)
            file.seek(0)
            result = torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; train this network first, or name its folder or file"
        ) from error
    except pickle.UnpicklingError as error:
        # Torch's message advises to load it anyway.
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded: it is damaged, or contains more than "
            "tensors and plain values"
        ) from error
    except Exception as error:  # torch raises many exceptions on foreign or damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(result, dict):
        raise CheckpointError(f"{path}: contains a {type(result).__name__}, not a checkpoint")
    return result


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
            f"{path}: would be replaced, but is not a model of this bundle; move it elsewhere, or "
            "choose another --ckpt_dir"
        )


def load_weights(network: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a network.

    Args:
        network: of this run; for an `AtlasNetwork` the message says which template differs.
        checkpoint: as loaded, with the weights under ``network``.
        path: of its file, for the message.

    Raises:
        CheckpointError: the weights are of another network; the message says what differs.
    """
    state = checkpoint.get("network")
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
    for what, ours_value, other in zip(whats, ours, theirs, strict=False):
        if ours_value != other:
            raise CheckpointError(
                f"{path}: has {other} {what}, this run has {ours_value}; {advice}"
            )
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
