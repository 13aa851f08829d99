"""Real trainers on a tiny cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer

from scripts.atlas.building import build_network
from scripts.atlas.components import atlas_loss, cohort_transforms, train_dataset
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.training_step import AtlasStep, atlas_optimizer
from scripts.cohort import Cohort
from scripts.data import EpochBatches
from scripts.engines.handlers import LossHistory
from scripts.settings.atlas import LearnedAtlasConfig


class Training:
    """What `configs/train.yaml` puts together, without its handlers."""

    def __init__(self, cohort: Cohort, settings: LearnedAtlasConfig, folder: Path) -> None:
        self.cohort, self.settings, self.folder = cohort, settings, folder
        transform = cohort_transforms(cohort, settings)
        self.dataset = train_dataset(cohort.datalist(), transform, settings, folder / "cache")
        self.network: AtlasNetwork = build_network(cohort, settings, self.dataset)
        self.loss = atlas_loss(cohort.grid.spacing, settings)
        self.optimizer = atlas_optimizer(
            self.network, settings.optimizer.lr, settings.optimizer.template_lr_ratio
        )
        self.batches = EpochBatches(
            len(self.dataset), settings.optimizer.batch_size, settings.optimizer.seed
        )
        self.history = LossHistory()

    def trainer(self, handlers: Sequence[Any] = ()) -> SupervisedTrainer:
        return SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=self.settings.optimizer.epochs,
            epoch_length=len(self.batches),
            train_data_loader=DataLoader(self.dataset, batch_sampler=self.batches),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            inferer=SimpleInferer(),
            iteration_update=AtlasStep(  # type: ignore[arg-type]  # takes MONAI's own engine
                self.loss,
                self.settings.dtype,
                self.settings.optimizer.gradient_clip,
                self.settings.model.mixture_sharpness,
            ),
            train_handlers=list(handlers),
        )


class Interrupted:
    """A dataset that fails at its n-th reading."""

    def __init__(self, dataset: Any, readings: int) -> None:
        self.dataset, self.left = dataset, readings

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.dataset[index]


@pytest.fixture
def make_training(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., Training]:
    def make(made_of: dict[str, Any] | None = None, **changes: Any) -> Training:
        return Training(make_cohort(**(made_of or {})), make_settings(**changes), tmp_path)

    return make
