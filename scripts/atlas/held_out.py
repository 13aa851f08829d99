"""Registers held-out subjects to the atlas at the end of a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

from scripts.atlas.network import AtlasNetwork, density_of
from scripts.atlas.published_model import published_geometry, published_transforms
from scripts.atlas.training_step import bare
from scripts.cohort import read_new_subjects
from scripts.data import density_transforms
from scripts.errors import CohortError
from scripts.metrics import log_density_correlation
from scripts.networks.precision import autocast
from scripts.runtime.processes import is_first
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["HeldOutSubjects"]

logger = logging.getLogger(__name__)


class HeldOutSubjects:
    """Reports how well the atlas fits subjects that weren't in the training.

    Tools that choose the data themselves (MONAI Label) hold some of it back and pass it as a second
    data list. At this point the atlas is already published, so a subject that can't be used gives a
    warning and doesn't end the run.

    Args:
        network: the trained network.
        settings: of the run.
        data: mappings with the path of a map as ``image``; None or empty: nothing is done.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        settings: LearnedAtlasConfig,
        data: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.network: AtlasNetwork = bare(network)
        self.settings = settings
        self.files = [Path(str(item["image"])) for item in data or ()]

    @torch.no_grad()
    def run(self) -> dict[str, tuple[float, float]]:
        """Register each subject.

        Returns:
            In the first of several processes, by subject: the correlation of its log density with
            the template's on the subject's support, before and after.
        """
        if not self.files or not is_first():
            return {}
        grid, crop = published_geometry(self.network)
        try:
            subjects = read_new_subjects(
                self.files, self.settings.cohort_request().without_labels(), grid, crop
            )
        except CohortError as error:
            logger.warning("the held-out subjects can't be used: %s", error)
            return {}
        transform = density_transforms(
            self.settings.cohort.normalisation,
            self.settings.model.channels,
            self.settings.loss.log_offset,
            crop.start,
            crop.stop,
            grid=grid,
            resample=self.settings.cohort.resample,
            tolerance=self.settings.cohort.grid_tolerance,
            changes=published_transforms(self.network),
        )
        self.network.eval()
        result = {}
        for item in subjects.datalist():
            result[item["subject"]] = self._fit(transform(item)["image"])
            logger.info(
                "held-out subject %s: correlation of log densities %.3f before, %.3f after",
                item["subject"],
                *result[item["subject"]],
            )
        return result

    def _fit(self, image: Any) -> tuple[float, float]:
        network = self.network
        batch = convert_to_tensor(image, track_meta=False)[None].to(network.template.device)
        with autocast(batch.device, self.settings.dtype):
            velocity, template = network.match(batch)
        after = network.predict(velocity, template)[0].cpu().numpy()
        before = network.template_density()[int(template[0])].cpu().numpy()
        subject = density_of(batch[0], network.log_offset).cpu().numpy()
        support = np.asarray(subject > 0)
        first, second = (
            log_density_correlation(atlas, subject, network.log_offset, support)
            for atlas in (before, after)
        )
        return first, second
