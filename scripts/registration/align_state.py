"""What an unfinished alignment leaves on disk: each subject's transform of each round."""

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
"""Finds a matrix ``(4, 4)`` and its loss."""


@dataclass(frozen=True)
class AlignedFiles:
    """The images that an alignment is estimated on.

    Attributes:
        subjects: names and files, in order.
        target: the image that everybody is aligned to; None: the cohort's mean.
    """

    subjects: Sequence[tuple[str, Path]]
    target: Path | None = None

    def identity(self) -> str:
        """SHA-256 over names and content; the same wherever the dataset lies."""
        content = [(name, file_hash(path)) for name, path in self.subjects]
        target = None if self.target is None else file_hash(self.target)
        return hashlib.sha256(json.dumps([content, target]).encode()).hexdigest()


class KeptTransforms:
    """Runs what finds a transform, or takes what an interrupted run found.

    A transform is a file written whole, so that a run that was killed goes on at the subject where
    it was. Numbers are written so that they come back to the bit: means and centring, which are
    computed anew, are then those of an unbroken run.

    Args:
        folder: where the files go; None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __call__(self, step: int, index: int, find: Transforming) -> Found:
        """A subject's transform.

        Args:
            step: 0 for the first one, then the round.
            index: of the subject.
            find: is run if there is none yet.

        Raises:
            CheckpointError: what is there is damaged.
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
            there = read_checked(path, frozenset({"matrix", "loss"}))
            matrix, loss = np.array(there["matrix"], dtype=np.float64), float(there["loss"])
            if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
                raise ValueError("no 4x4 matrix")
        except (FileError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); throw the unfinished run away with "
                "--align#resume false"
            ) from error
        return matrix, loss
