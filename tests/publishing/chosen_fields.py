"""A small cohort and a publisher of it, whose velocities a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.atlas.building import build_network
from scripts.atlas.network import AtlasNetwork
from scripts.cohort import Cohort
from scripts.publishing.publisher import AtlasPublisher
from scripts.settings.atlas import LearnedAtlasConfig


class Chosen:
    """Constant velocities along the first axis, one a subject."""

    def __init__(
        self,
        network: AtlasNetwork,
        moves: Sequence[float],
        assignment: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.network = network
        self.moves = moves
        given = [[1.0]] * len(moves) if assignment is None else assignment
        self.assignment = torch.tensor(given)
        self.folded: set[int] = set()

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        velocity = torch.zeros(1, self.network.spatial_dims, *self.network.reduced)
        velocity[:, 0] = self.moves[index]
        if index in self.folded:
            velocity += 6 * torch.randn(velocity.shape, generator=torch.Generator().manual_seed(0))
        return velocity


class Bench:
    """A cohort, its network and a publisher of it."""

    def __init__(
        self,
        cohort: Cohort,
        settings: LearnedAtlasConfig,
        folder: Path,
        moves: Sequence[float] | None = None,
        assignment: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.cohort, self.settings, self.folder = cohort, settings, folder
        self.densities = [self.density(i) for i in range(len(cohort.subjects))]
        dataset = [{"image": torch.tensor(cohort.crop.crop(x))} for x in self.densities]
        logs = [{"image": torch.log1p(one["image"] / settings.loss.log_offset)} for one in dataset]
        self.network = build_network(cohort, settings, logs)
        still = [0.0] * len(cohort.subjects)
        self.velocities = Chosen(self.network, still if moves is None else moves, assignment)
        self.publisher = AtlasPublisher(
            self.network,
            dataset,
            cohort,
            settings,
            self.velocities,
            folder / "output",
            folder / "models" / "model.pt",
        )

    def density(self, index: int) -> np.ndarray:
        """A subject's density on the whole grid, ``(C, *grid)`` float32."""
        maps = self.cohort.subjects[index].maps
        images = (nib.load(one.path).dataobj for one in maps)  # type: ignore[attr-defined]
        return np.stack([np.asarray(image) for image in images]).astype(np.float32)

    @property
    def atlas(self) -> Path:
        return self.folder / "output" / "learned_atlas"

    def read(self, name: str) -> np.ndarray:
        return np.asarray(nib.load(self.atlas / name).dataobj)  # type: ignore[attr-defined]


@pytest.fixture
def bench(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., Bench]:
    def make(
        moves: Sequence[float] | None = None,
        assignment: Sequence[Sequence[float]] | None = None,
        made_of: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Bench:
        settings = make_settings(**changes)
        return Bench(make_cohort(**(made_of or {})), settings, tmp_path, moves, assignment)

    return make
