"""The barycentre atlas: the cohort's mean under optimal transport, without deformation."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from scripts.baselines.averaging import AveragingAtlas
from scripts.baselines.wasserstein import OutOfReachError, wasserstein_barycentre
from scripts.cohort import Cohort
from scripts.cohort.density import subject_density
from scripts.errors import ConfigurationError
from scripts.networks.precision import open_device
from scripts.publishing.statistics import DensityStatistics
from scripts.settings.applications import BarycentreConfig
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["BARYCENTRE_FOLDER", "BarycentreAtlas"]

logger = logging.getLogger(__name__)

BARYCENTRE_FOLDER = "barycentre"
_TAIL = 1e-6  # of the maximum
_UNSETTLED = 1e-2  # share of mass above which movement in the last iteration gives a warning


class BarycentreAtlas(AveragingAtlas):
    """Publishes the Wasserstein barycentre as ``mean``, with the four maps of spread.

    Those four are about the sample mean of the unregistered maps, as for the averaging atlas: no
    subject is deformed. Each channel is transported separately. Subjects without mass in a channel
    don't influence the position of its barycentre, but lower its mass.

    Args:
        cohort: the checked subjects.
        settings: as for `AveragingAtlas`, and the device.
        transport: blur, iterations, scaling.
        output_dir: the maps go to its folder ``barycentre``.
    """

    kind: ClassVar[str] = "barycentre"
    folder_name: ClassVar[str] = BARYCENTRE_FOLDER

    def __init__(
        self,
        cohort: Cohort,
        settings: LearnedAtlasConfig,
        transport: BarycentreConfig,
        output_dir: str | Path,
    ) -> None:
        super().__init__(cohort, settings, output_dir)
        self.transport = transport
        self.blur = transport.blur or max(cohort.grid.spacing)
        self.device = open_device(settings.device, settings.key("device"))
        self._moved: list[float] = []

    def _maps(self) -> dict[str, np.ndarray]:
        grid, crop = self.cohort.grid, self.cohort.crop
        channels = self.settings.model.channels
        statistics = DensityStatistics((channels, *crop.shape), self.settings.presence_value)
        densities = []
        for subject in self.cohort.subjects:
            density = crop.crop(subject_density(subject, channels, grid.shape))
            statistics.add(density)
            densities.append(density.astype(np.float32))
        template = np.zeros((channels, *crop.shape), dtype=np.float32)
        self._moved = []
        for channel in range(channels):
            maps = [one[channel] for one in densities]
            template[channel] = self._barycentre([one for one in maps if one.any()], len(maps))
        return statistics.maps(template, self.settings.cov_mean_threshold_pct)

    def _barycentre(self, maps: list[np.ndarray], subjects: int) -> np.ndarray:
        with tqdm(desc="barycentre", unit=" iterations", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            try:
                result, moved = wasserstein_barycentre(
                    [torch.from_numpy(one).to(self.device) for one in maps],
                    self.cohort.grid.spacing,
                    self.blur,
                    self.transport.iterations,
                    self.transport.scaling,
                    progress,
                )
            except OutOfReachError as error:
                raise ConfigurationError(
                    f"barycentre.blur = {self.blur:g}: the subjects' mass is more than 37 times as "
                    "far apart; must be larger"
                ) from error
        self._moved.append(moved)
        if moved > _UNSETTLED:
            logger.warning(
                "the last iteration moved %.2g of the mass: use more with --barycentre#iterations",
                moved,
            )
        estimate = result.cpu().numpy() * (len(maps) / subjects)
        # Tails of the blur, beyond the reach of any subject's mass, aren't density.
        estimate[estimate < _TAIL * estimate.max()] = 0
        return estimate

    def _description(self, hashes: dict[str, str]) -> dict[str, Any]:
        about = super()._description(hashes)
        about["transport"] = {**self.transport.as_dict(), "blur": self.blur, "moved": self._moved}
        about["versions"]["torch"] = version("torch")
        return about
