"""A trained network of fields, saved with its report and its training curves."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.run_state import RunState
from scripts.networks.unwrapping import unwrapped
from scripts.pairwise.measurement import Measurement, error_texts
from scripts.runtime.storage import write_whole
from scripts.settings.train_fields import TrainFieldsConfig
from scripts.supervised.field_network import FieldNetwork
from scripts.supervised.loading import FieldPairs
from scripts.supervised.report_folder import check_report_folder
from scripts.supervised.saving import network_path, save_field_network

__all__ = ["FieldMeasurement", "FieldNetworkPublisher"]

logger = logging.getLogger(__name__)

_SHOWN = ("distance_tissue", "distance_tissue_zero", "folded", "inverse", "correlation")


class FieldMeasurement(Measurement):
    """`Measurement` that logs the few numbers that matter most; the report has all."""

    def __call__(self, engine: Engine) -> None:
        """Measure, and log."""
        logger.info("epoch %d, held out: %s", engine.state.epoch, _shown(self.measured()))


class FieldNetworkPublisher:
    """Measures for the last time, saves the network, and writes the report.

    Args:
        network: as trained.
        optimizer: saved with it.
        pairs: that it learned from.
        settings: of the run.
        measurement: on the held-out pairs.
        history: of the losses.
        state: of the run; None without training.
        ckpt_dir: destination of the network.
        output_dir: where ``fields/result.json`` and ``fields/training_<network>.png`` go.

    Raises:
        StorageError: files of somebody else stand there.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        pairs: FieldPairs,
        settings: TrainFieldsConfig,
        measurement: Measurement,
        history: LossHistory,
        state: RunState,
        ckpt_dir: str | Path,
        output_dir: str | Path,
    ) -> None:
        self.network = unwrapped(network, FieldNetwork)
        self.optimizer = optimizer
        self.pairs = pairs
        self.settings = settings
        self.measurement = measurement
        self.history = history
        self.state = state
        self.path = network_path(ckpt_dir, settings.network)
        self.folder = Path(output_dir) / "fields"
        check_report_folder(self.folder, pairs.store.path, pairs.other.path)

    def publish(self) -> None:
        """Write everything, each file whole, and end the run.

        Raises:
            CohortError: a store changed while it was read; nothing is written.
        """
        metrics = self.measurement.measured()
        self.pairs.check_unchanged()
        place = save_field_network(self.path, self.network, self.optimizer, self.settings)
        report: dict[str, Any] = {
            "network": self.settings.network,
            "parameters": sum(one.numel() for one in self.network.parameters()),
            "model": str(place),
            "pairs": str(self.pairs.store.path),
            "trained_on": len(self.pairs.training),
            "held_out": len(self.pairs.held_out),
            "metrics": metrics,
            "loss": self.history.epochs[-1] if self.history.epochs else {},
            "epochs": self.history.epochs,
            "settings": self.settings.as_dict(),
            "versions": {name: version(name) for name in ("torch", "monai", "numpy", "h5py")},
        }
        with write_whole(self.folder / "result.json") as path:
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if self.history.epochs:
            with write_whole(self.folder / f"training_{self.settings.network}.png") as path:
                _curves(self.history.epochs, path)
        self.state.finish("")
        if metrics:
            logger.info("held out: %s", _shown(metrics))
        logger.info("network in %s, report in %s", place, self.folder / "result.json")


def _shown(metrics: dict[str, float]) -> str:
    return error_texts({name: metrics[name] for name in _SHOWN if name in metrics})


def _curves(epochs: list[dict[str, float]], path: Path) -> None:
    """Each term of the loss, and the distance, over the epochs."""
    names = [name for name in epochs[0] if all(name in epoch for epoch in epochs)]
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        axes.plot(range(1, len(epochs) + 1), [epoch[name] for epoch in epochs])
        axes.set_title(name.replace("_", " ") + (" (px)" if name == "distance" else ""))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
