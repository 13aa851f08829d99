"""Voxels of new subjects that don't count, in the box of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from scripts.cohort import NewSubjects
from scripts.cohort.masks import valid_voxels
from scripts.spatial.grid import CropBox

__all__ = ["SubjectMasks"]


class SubjectMasks:
    """Reads the mask of a subject when it is registered, once for all callers.

    Args:
        subjects: with the files of their masks.
        crop: the atlas's box.
    """

    def __init__(self, subjects: NewSubjects, crop: CropBox) -> None:
        self.masks = subjects.masks
        self.subjects = {subject.name: subject for subject in subjects.subjects}
        self.crop = crop
        self._latest: dict[str, torch.Tensor | None] = {}  # of the batch under way

    def valid(self, subject: str) -> torch.Tensor | None:
        """Voxels of the box that count, ``(1, *crop.shape)`` bool; None: all of them.

        Raises:
            CohortError: the file has changed since it was checked.
        """
        if subject in self._latest:
            return self._latest[subject]
        if self.masks is None:
            return None
        valid = valid_voxels(self.subjects[subject], self.masks)
        return None if valid is None else torch.from_numpy(self.crop.crop(valid).copy())[None]

    def valid_of_batch(self, subjects: Sequence[str], device: torch.device) -> torch.Tensor | None:
        """The same for a batch, ``(B, 1, *crop.shape)``; None if all voxels of all count."""
        self._latest = {}
        each = [self.valid(name) for name in subjects]
        self._latest = dict(zip(subjects, each, strict=True))
        if all(one is None for one in each):
            return None
        everything = torch.ones((1, *self.crop.shape), dtype=torch.bool)
        return torch.stack([everything if one is None else one for one in each]).to(device)

    def record(self, subject: str) -> dict[str, Any] | None:
        """Path and hash of a subject's mask, for reports; None: it has none."""
        mask = None if self.masks is None else self.masks.files.get(subject)
        return None if mask is None else mask.as_dict()
