"""Writes a trained network for pairs and its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.run_state import RunState
from scripts.errors import TrainingError
from scripts.networks.checkpoint import save_checkpoint
from scripts.pairwise.images import PairImages
from scripts.pairwise.measurement import Measurement, error_texts
from scripts.runtime.storage import write_whole
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.elastic import LearnedElasticConfig

__all__ = ["NetworkPublisher", "require_gain"]

logger = logging.getLogger(__name__)


class NetworkPublisher:
    """Writes the trained network and its measurements.

    Each file is written completely or not at all.

    Args:
        network: the trained network.
        images: of the cohort.
        settings: of the run.
        measurement: on the held-out subjects.
        history: of the losses.
        state: marked as finished once everything is written.
        report: path of the report, JSON.
        model_file: path of the network.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        images: PairImages,
        settings: LearnedAffineConfig | LearnedElasticConfig,
        measurement: Measurement,
        history: LossHistory,
        state: RunState,
        report: str | Path,
        model_file: str | Path,
    ) -> None:
        self.network: torch.nn.Module = getattr(network, "module", network)
        self.images = images
        self.settings = settings
        self.measurement = measurement
        self.history = history
        self.state = state
        self.report = Path(report)
        self.model_file = Path(model_file)

    def publish(self) -> None:
        """Measure for the last time, write everything, and finish the run.

        Raises:
            TrainingError: on held-out pairs the network is worse than no network.
        """
        metrics = self.measurement.measured()
        require_gain(metrics)
        self.images.check_unchanged()
        weights = {
            name: torch.as_tensor(value).detach().cpu()
            for name, value in self.network.state_dict().items()
        }
        save_checkpoint(weights, self.model_file)
        last = self.history.epochs[-1] if self.history.epochs else {}
        report = {
            "metrics": metrics,
            "loss": last,
            "fold": self.settings.fold,
            "trained_on": [item["subject"] for item in self.images.training()],
            "held_out": [item["subject"] for item in self.images.held_out()],
            "rejected": {one.subject: one.reason for one in self.images.rejected},
            "model": str(self.model_file),
            "settings": self.settings.as_dict(),
            "versions": {name: version(name) for name in ("torch", "monai", "numpy")},
        }
        with write_whole(self.report) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
        self.state.finish("")
        if metrics:
            logger.info("held out: %s", error_texts(metrics))
        logger.info("network in %s, report in %s", self.model_file, self.report)


def require_gain(metrics: Mapping[str, float]) -> None:
    """Refuse a network that is worse on held-out pairs than leaving them as they are.

    Args:
        metrics: ``distance`` (mm) or ``overlap``, and the same ``_before``; none of them without
            held-out subjects.

    Raises:
        TrainingError: saying by how much.
    """
    for name, unit, worse in (("distance", " mm", 1.0), ("overlap", "", -1.0)):
        after, before = metrics.get(name), metrics.get(f"{name}_before")
        if after is not None and before is not None and not worse * (after - before) <= 0:
            raise TrainingError(
                f"the network is worse than none on held-out pairs ({name} {after:.3g}{unit}, "
                f"{before:.3g}{unit} without it), so it isn't written; train for more epochs, on "
                "more pairs or within smaller ranges"
            )
