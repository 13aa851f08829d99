"""Label Dice by leave-one-out: each subject's labels against those of the others."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scripts.atlas.registration import Registration
from scripts.cohort.subject_images import SubjectImages
from scripts.metrics import dice
from scripts.spatial.label_fusion import LabelSums, label_shares

__all__ = ["LabelOverlap", "label_dice"]

logger = logging.getLogger(__name__)


def label_dice(propagated: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Dice of each label of a subject, without background.

    Args:
        propagated: estimated labels.
        labels: the subject's labels, the same shape.

    Example:
        >>> label_dice(np.array([0, 7, 7, 9]), np.array([0, 7, 0, 0]))
        {7: 0.6666666666666666}
    """
    return {int(n): float(dice(propagated == n, labels == n)) for n in np.unique(labels) if n != 0}


class LabelOverlap:
    """Fuses the subjects' labels in template space, and compares each subject with the rest.

    Each subject's share is subtracted from the sum of all, exactly, and the most probable labels of
    the others are read in its space. Fields and labels are computed again for it from the velocity,
    which is kept in a temporary folder, so memory doesn't grow with the number of subjects.

    Args:
        labels: of the subjects.
        templates: number of templates; the subjects of one template are fused.
        fields: gives the fields of a velocity.
    """

    def __init__(
        self,
        labels: SubjectImages,
        templates: int,
        fields: Callable[[torch.Tensor], Registration],
    ) -> None:
        self.labels = labels
        self.fields = fields
        self.sums = [LabelSums(labels.grid.shape) for _ in range(templates)]
        self.assigned: dict[str, int] = {}
        self._kept = tempfile.TemporaryDirectory(prefix="label-overlap-")

    def add(
        self, subject: str, template: int, velocity: torch.Tensor, registration: Registration
    ) -> None:
        """Add a subject; nothing if it has no labels.

        Args:
            subject: its name.
            template: index of its template.
            velocity: ``(1, d, *reduced)``.
            registration: the fields of the velocity.
        """
        labels = self.labels.read(subject)
        if labels is None:
            return
        self.sums[template].add(label_shares(labels, _voxels(registration.to_template)))
        np.save(self._file(len(self.assigned)), velocity.cpu().numpy())
        self.assigned[subject] = template

    @torch.no_grad()
    def finish(self) -> dict[str, dict[int, float]]:
        """Dice of each label by subject; without subjects that are alone with their template."""
        scores: dict[str, dict[int, float]] = {}
        for number, (subject, template) in enumerate(self.assigned.items()):
            sums = self.sums[template]
            if sums.subjects < 2:
                logger.warning("subject %s: no other subject has labels to compare with", subject)
                continue
            velocity = torch.from_numpy(np.load(self._file(number)))
            registration, own = self.fields(velocity), self.labels.read(subject)
            assert own is not None
            shares = label_shares(own, _voxels(registration.to_template))
            sums.add(shares, sign=-1)
            places = np.indices(own.shape) + _voxels(registration.to_subject)
            scores[subject] = label_dice(sums.majority_at(places), own)
            sums.add(shares)
        self._kept.cleanup()
        return scores

    def _file(self, number: int) -> Path:
        return Path(self._kept.name) / f"{number}.npy"


def _voxels(field: torch.Tensor) -> np.ndarray:
    return field[0].double().cpu().numpy()
