"""The files of an unfinished alignment: each subject's transform in each round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.errors import CheckpointError
from scripts.runtime.checked_json import read_checked, write_checked
from scripts.runtime.input_files import FileError
from scripts.runtime.storage import file_hash

__all__ = ["AlignedFiles", "KeptTransforms", "Transforming"]

Found = tuple[np.ndarray, float]
Transforming = Callable[[], Found]
"""Estimates a matrix ``(4, 4)`` and its loss."""


@dataclass(frozen=True)
class AlignedFiles:
    """The images for the estimation of an alignment.

    Attributes:
        subjects: names and files, in order.
        target: the image that all subjects are aligned to; None: the cohort's mean.
    """

    subjects: Sequence[tuple[str, Path]]
    target: Path | None = None

    def identity(self) -> str:
        """SHA-256 of names and content; independent of the dataset's location."""
        content = [(name, file_hash(path)) for name, path in self.subjects]
        target = None if self.target is None else file_hash(self.target)
        return hashlib.sha256(json.dumps([content, target]).encode()).hexdigest()


class KeptTransforms:
    """Estimates a transform, or returns that of an interrupted run.

    A transform is a file that is written completely or not at all, so a killed run continues with
    the next subject. Numbers are written exactly, so means and centring, which are computed again,
    are bit-identical to those of an uninterrupted run.

    Args:
        folder: of the files; None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __call__(self, step: int, index: int, find: Transforming) -> Found:
        """A subject's transform.

        Args:
            step: 0 for the first registration, then the round.
            index: of the subject.
            find: called if there is no transform yet.

        Raises:
            CheckpointError: the file is damaged.
            StorageError: it can't be written.
        """
        if self.folder is None:
            return find()
        path = self.folder / f"round-{step:03d}" / f"{index:06d}.json"
        if path.exists():
            return self._read(path)
        matrix, loss = find()
        write_checked(path, {"matrix": matrix.tolist(), "loss": loss})
        return matrix, loss

    def _read(self, path: Path) -> Found:
        try:
            content = read_checked(path, frozenset({"matrix", "loss"}))
            matrix, loss = np.array(content["matrix"], dtype=np.float64), float(content["loss"])
            if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
                raise ValueError("not a 4x4 matrix")
        except (FileError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); discard the unfinished run with --align#resume false"
            ) from error
        return matrix, loss
