"""Training of affine networks: the loss, the trainer's and the evaluator's step, the report."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch.utils.data import Dataset

from scripts.affine.affine_network import AffineNetwork, CascadePass, bare_affine_network
from scripts.affine.estimation import matrix_errors
from scripts.affine.pairs import Pairs, SyntheticPairs
from scripts.affine.settings import LearnedAffineConfig
from scripts.affine.training_images import AffineImages
from scripts.elastic.settings import LearnedElasticConfig
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.run_state import RunState
from scripts.engines.training_step import descend
from scripts.networks.precision import autocast
from scripts.storage import write_whole

__all__ = [
    "AffineLoss",
    "AffineStep",
    "HeldOutErrors",
    "HeldOutStep",
    "Measurement",
    "NetworkPublisher",
    "RepeatedDataset",
]

logger = logging.getLogger(__name__)

_TRAINING, _HELD_OUT = 0, 1  # first number of a pair's key: the two never share a pair


class RepeatedDataset(Dataset[dict[str, Any]]):
    """A dataset whose every item comes several times; what is made of it differs each time.

    Args:
        data: the dataset.
        times: how often each item comes.
    """

    def __init__(self, data: Any, times: int) -> None:
        self.data = data
        self.times = times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index % len(self.data)]


class AffineLoss(torch.nn.Module):
    """Squared error of what each pass of a cascade found, and of the images it aligns.

    A pass is judged by the step that was left for it. With parameters: the mean over pairs of the
    squared differences, summed over parameters (radians, half widths, deviations from 1). Without
    (keypoints): the same over the entries of the composed matrix, lengths in half widths. The
    image term is the mean squared difference of the images without augmentation.

    Args:
        parameter_weight: of the first.
        image_weight: of the second; 0 leaves it out.
    """

    def __init__(self, parameter_weight: float = 1.0, image_weight: float = 0.0) -> None:
        super().__init__()
        self.parameter_weight = parameter_weight
        self.image_weight = image_weight

    def forward(
        self, network: AffineNetwork, passes: list[CascadePass], pairs: Pairs
    ) -> dict[str, torch.Tensor]:
        """``loss`` and its terms, means over the passes."""
        parameter = torch.stack([self._of_pass(network, one, pairs) for one in passes]).mean()
        terms = {"parameters": parameter.float()}
        total = self.parameter_weight * parameter
        if self.image_weight > 0:
            fixed, moving = pairs.clean[:, :1], pairs.clean[:, 1:]
            image = torch.stack(
                [(network.moved(moving, one.matrix) - fixed).square().mean() for one in passes]
            ).mean()
            terms["image"] = image
            total = total + self.image_weight * image
        return {"loss": total.float(), **terms}

    def _of_pass(self, network: AffineNetwork, one: CascadePass, pairs: Pairs) -> torch.Tensor:
        if one.parameters is not None:
            with torch.no_grad():
                if one.before.allclose(torch.eye(4).to(one.before), rtol=0, atol=0):
                    wanted = pairs.parameters
                else:
                    wanted = network.residual_parameters(pairs.matrix, one.before)
            return (one.parameters - wanted).square().sum(1).mean()
        d = network.frame.spatial_dims
        half = network.frame.half_width.to(one.matrix.device)
        apart = (one.matrix - pairs.matrix)[:, :d]
        linear = apart[:, :, :d].square().sum((1, 2))
        return (linear + (apart[:, :, 3] / half).square().sum(1)).mean()


class AffineStep:
    """The trainer's ``iteration_update``: images to pairs, forward, loss, backward, step.

    Args:
        pairs: makes them; depends on the iteration alone, so that a resumed run sees the pairs of
            an unbroken one.
        loss: of the cascade.
        dtype: of the convolutions.
        gradient_clip: greatest norm of a gradient.
    """

    def __init__(
        self,
        pairs: SyntheticPairs,
        loss: AffineLoss,
        dtype: str = "float32",
        gradient_clip: float = 1.0,
    ) -> None:
        self.pairs = pairs
        self.loss = loss
        self.dtype = dtype
        self.gradient_clip = gradient_clip

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration; ``loss``, its terms and ``distance`` (mm) are scalars."""
        assert engine.network is not None and engine.optimizer is not None
        network = bare_affine_network(engine.network)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_TRAINING, engine.state.iteration))
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(image.device, self.dtype):
            passes = network.cascade(made.pair)
        engine.state.output = {"image": image, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss(network, passes, made)
        half_width = network.frame.half_width.to(image.device)
        far = matrix_errors(passes[-1].matrix.detach(), made.matrix, half_width)["distance"]
        engine.state.output.update({name: term.detach() for name, term in terms.items()})
        engine.state.output["distance"] = far.mean().float()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        descend(engine, terms["loss"], network.parameters(), self.gradient_clip, "learned_affine")
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class HeldOutStep:
    """The evaluator's ``iteration_update``: fixed pairs of held-out subjects, estimated.

    Args:
        pairs: makes them; the same ones at every call of the evaluator, in every run of equal
            seed and ranges.
    """

    def __init__(self, pairs: SyntheticPairs) -> None:
        self.pairs = pairs

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """Errors of every pair, see `matrix_errors`, with and without the network."""
        assert engine.network is not None
        network = bare_affine_network(engine.network)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_HELD_OUT, engine.state.iteration))
        network.eval()
        with torch.no_grad():
            found = engine.inferer(made.pair, network)
        half_width = network.frame.half_width.to(image.device)
        before = matrix_errors(torch.eye(4).to(found).expand_as(found), made.matrix, half_width)
        errors = matrix_errors(found, made.matrix, half_width)
        errors.update({f"{name}_before": value for name, value in before.items()})
        engine.state.output = {"image": image, "subject": batch["subject"], **errors}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # cuts the batch into subjects
        return engine.state.output


class HeldOutErrors:
    """Means and 90th percentiles of the evaluator's errors, in ``engine.state.metrics``."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        """Gather after each iteration, sum up after each run."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._sum_up)

    def _begin(self, engine: Engine) -> None:
        self._found = {}

    def _gather(self, engine: Engine) -> None:
        subjects: Any = engine.state.output
        for item in subjects:
            for name, value in item.items():
                if name not in ("image", "subject"):
                    self._found.setdefault(name, []).append(float(value))

    def _sum_up(self, engine: Engine) -> None:
        for name, values in self._found.items():
            engine.state.metrics[name] = float(np.mean(values))
            if name == "distance":
                engine.state.metrics["distance_90"] = float(np.quantile(values, 0.9))
        engine.state.metrics["pairs"] = float(max(map(len, self._found.values()), default=0))


class Measurement:
    """Measures on the held-out subjects every few epochs, and tells.

    Args:
        evaluator: goes through pairs of held-out subjects.
        held_out: how many there are; with none, nothing is measured.
        interval: epochs between measurements.
    """

    def __init__(self, evaluator: SupervisedEvaluator, held_out: int, interval: int = 10) -> None:
        self.evaluator = evaluator
        self.held_out = held_out
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Measure after every ``interval`` epochs."""
        if self.held_out:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Measure, and log the means."""
        metrics = self.measured()
        logger.info("epoch %d, held out: %s", engine.state.epoch, _told(metrics))

    def measured(self) -> dict[str, float]:
        """Errors on the held-out subjects' pairs; empty without any."""
        if not self.held_out:
            return {}
        self.evaluator.run()
        return {name: float(value) for name, value in self.evaluator.state.metrics.items()}


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())


class NetworkPublisher:
    """Writes the trained network and what it was measured to do.

    Each file whole.

    Args:
        network: as trained.
        images: of the cohort.
        settings: of the run.
        measurement: on the held-out subjects.
        history: of the losses.
        state: finished once all is written.
        report: file of the report, JSON.
        model_file: file of the network.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        images: AffineImages,
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
        """Measure for the last time, write everything, and end the run."""
        metrics = self.measurement.measured()
        weights = {
            name: torch.as_tensor(value).detach().cpu()
            for name, value in self.network.state_dict().items()
        }
        with write_whole(self.model_file) as path:
            torch.save(weights, path)
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
            logger.info("held out: %s", _told(metrics))
        logger.info("network in %s, report in %s", self.model_file, self.report)
