"""Components that the configs name to publish a cohort's atlas."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from scripts.atlas.components import cohort_transforms
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_coding
from scripts.cohort import (
    Cohort,
    parse_values,
)
from scripts.data import density_dataset, linear_transforms
from scripts.publishing.publisher import AtlasPublisher
from scripts.runtime.progress import progress_bar
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["cohort_publisher"]

logger = logging.getLogger(__name__)


def cohort_publisher(
    network: AtlasNetwork,
    cohort: Cohort,
    settings: LearnedAtlasConfig,
    velocities: Any,
    output_dir: str | Path,
    model_file: str | Path | None = None,
    history: Any = None,
    state: Any = None,
    at: str | Mapping[str, Any] | None = None,
    transform: Compose | None = None,
) -> AtlasPublisher:
    """Publishes the cohort's atlas from LINEAR densities, which are read again subject by subject.

    ``at`` selects a conditional template at chosen covariates, see `parse_values`; it goes to a
    separate folder. ``transform`` leads from files to log densities; its logarithm is removed.
    None: according to the settings.

    Raises:
        ConfigurationError: ``at`` can't be parsed.
    """
    coding = published_coding(network)
    values = parse_values(at, coding)
    for sentence in coding.beyond(values) if coding is not None and values is not None else ():
        logger.warning("%s", sentence)
    linear = (
        cohort_transforms(cohort, settings, log=False)
        if transform is None
        else linear_transforms(transform)
    )
    dataset: Any = density_dataset(cohort.datalist(), linear, cache="none")
    return AtlasPublisher(
        network,
        dataset,
        cohort,
        settings,
        velocities,
        output_dir,
        model_file,
        history=history,
        state=state,
        device=torch.device(settings.device),
        bar=progress_bar,
        coding=coding,
        at=values or None,
        loss=velocities.loss,
        confirm=getattr(velocities, "check_unchanged", None),
    )
