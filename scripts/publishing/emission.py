"""One pass over the subjects: fields, warped densities, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch

from scripts.publishing.quality_page import SubjectQuality
from scripts.publishing.statistics import DensityStatistics

__all__ = ["NEGLIGIBLE_SHARE"]


T = TypeVar("T")

NEGLIGIBLE_SHARE = 0.01  # a template ignores subjects of which it explains less


class Velocities(Protocol):
    """Source of each subject's final velocity for the publisher."""

    assignment: torch.Tensor

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """``(1, d, *reduced)`` of subject ``index`` to a template."""
        ...


@dataclass(frozen=True)
class Templates:
    """The published templates, the same for every subject.

    Attributes:
        point: the chosen covariates, coded ``(1, p)``; None for the cohort's mean.
        towards: velocity of the templates there, ``(1, d, *reduced)``; None for the mean's.
        density: the published mean, ``(K, C, *crop)``.
    """

    point: torch.Tensor | None
    towards: torch.Tensor | None
    density: torch.Tensor


@dataclass
class Emitted:
    """Results of one pass over the subjects.

    Attributes:
        statistics: one per template.
        jacobians: by subject and direction.
        moves: displacements over all subjects.
        subjects: for the quality page.
        pictures: of the subjects on the quality page.
        grids: their fields.
        hashes: SHA-256 of the field files, by name.
    """

    statistics: list[DensityStatistics]
    jacobians: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    moves: dict[str, float] = field(default_factory=dict)
    subjects: list[SubjectQuality] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    grids: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def merge(self, other: Emitted) -> None:
        """Add the results of another process."""
        for mine, theirs in zip(self.statistics, other.statistics, strict=True):
            mine.merge(theirs)
        self.jacobians |= other.jacobians
        self.subjects += other.subjects
        self.pictures |= other.pictures
        self.grids |= other.grids
        self.hashes |= other.hashes

    def sort(self, names: Sequence[str]) -> None:
        """Sort everything into the order of the cohort."""
        place = {name: index for index, name in enumerate(names)}
        self.subjects.sort(key=lambda one: place[one["subject"]])
        self.jacobians = _in_order(self.jacobians, place)
        self.pictures = _in_order(self.pictures, place)
        self.grids = _in_order(self.grids, place)


def _in_order(table: dict[str, T], place: dict[str, int]) -> dict[str, T]:
    return {name: table[name] for name in sorted(table, key=place.__getitem__)}
