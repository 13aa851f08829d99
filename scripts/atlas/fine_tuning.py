"""Fine-tuning of the network with the template of the refinement."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.data import EpochBatches
from scripts.engines.rates import cosine_share
from scripts.errors import CheckpointError, TrainingError
from scripts.networks.checkpoint import load_latest, load_weights, save_checkpoint
from scripts.networks.precision import autocast
from scripts.runtime.processes import add_up, from_first, is_first
from scripts.runtime.progress import progress_bar

__all__ = ["NetworkFineTuning"]

logger = logging.getLogger(__name__)

FORMAT = 1
_WARMUP = 20  # steps


class NetworkFineTuning:
    """Trains the network further with a fixed template, so that new subjects need less refinement.

    During the joint training the network follows a blurred, moving template, which the rounds of
    refinement then change. With the final template, the same losses are a clear target. The network
    now learns several passes (see `AtlasNetwork`); in the earlier epochs they would cost
    proportionally more and give the template nothing that the refinement doesn't. The template, the
    cohort's velocities and therefore the maps don't change; at the end the network is centred
    again.

    The subjects of a batch are processed one by one, and with several processes each takes its
    share: the gradient is that of the whole batch, memory is that of one subject. There is a
    checkpoint after each epoch, and the order of the subjects depends only on seed and epoch, so
    that on a CPU an interrupted run is bit-identical to an uninterrupted one.

    Args:
        refinement: after its rounds; has network, subjects, loss and device.
        batches: the order of the subjects in this process.
        path: of the checkpoint.
        epochs: number of epochs; 0: nothing is done.
        lr: highest learning rate.
        gradient_clip: largest norm of the gradient.
        passes: of the network from now on; None: those that it knows.
    """

    def __init__(
        self,
        refinement: CohortRefinement,
        batches: EpochBatches,
        path: str | Path,
        epochs: int = 0,
        lr: float = 1.5e-3,
        gradient_clip: float = 1.0,
        passes: Sequence[int] | None = (1,),
    ) -> None:
        self.refinement = refinement
        self.network = refinement.network
        self.batches = batches
        self.path = Path(path)
        self.epochs = epochs
        self.lr = lr
        self.gradient_clip = gradient_clip
        self.passes = self.network.passes if passes is None else tuple(passes)
        self.parameters = list(self.network.unet.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.losses: list[float] = []  # epoch means

    def run(self) -> None:
        """Train, centre the network, and save it in the refinement's state; resumes automatically.

        Raises:
            TrainingError: a loss isn't finite; the checkpoint of the epoch before stays.
            CheckpointError: the checkpoint is of another run.
        """
        if self.epochs == 0:
            return
        self.network.passes = self.passes
        if self._load():
            self.refinement.save()  # a damaged state may have been given up for the one before
            return
        done, length = len(self.losses), len(self.batches)
        self.network.eval()  # fields as for new subjects: centred, with their covariates
        self.network.unet.train()  # only to recompute activations if the settings ask for it
        self.batches.first_epoch = done
        order = iter(self.batches)
        total = self.epochs * length
        with progress_bar(total, "network", initial=done * length) as bar:
            for epoch in range(done, self.epochs):
                summed = 0.0
                for number in range(length):
                    loss = self._step(next(order), epoch * length + number, total)
                    summed += loss
                    bar.set_postfix({"loss": f"{loss:.3f}"}, refresh=False)
                    bar.update()
                self.losses.append(summed / length)
                self._save(done=False)
        self.network.eval()
        logger.info("fine-tuning: loss %.3f to %.3f", self.losses[0], self.losses[-1])
        self.refinement.recentre()
        self.refinement.save()
        self._save(done=True)

    def _step(self, indices: list[int], step: int, total: int) -> float:
        """One batch; returns its mean loss over all processes."""
        local, whole = self.batches.sizes(step + 1)
        share = cosine_share(step / total) * min(1.0, (step + 1) / _WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)  # also if this process has no subject
        loss = torch.zeros((), dtype=torch.float64)
        for index in indices[:local]:
            part = self._loss(index) / whole
            part.backward(inputs=self.parameters)  # the template doesn't change
            loss += float(part.detach())
        add_up(loss, *(p.grad for p in self.parameters if p.grad is not None))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"loss of the network's fine-tuning is not finite ({float(loss):g}) in epoch "
                f"{step // len(self.batches) + 1}; lower learned_atlas#refine#network_lr or set "
                "learned_atlas#refine#network_epochs 0, and start again with "
                "--learned_atlas#resume false"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        self.optimizer.step()
        return float(loss)

    def _loss(self, index: int) -> torch.Tensor:
        """The loss of a subject, for the template that explains it best."""
        network, refinement = self.network, self.refinement
        image, covariates = refinement.image(index), refinement.covariates(index)
        assigned = refinement.assigned_template(index)
        with autocast(image.device, refinement.dtype):
            velocity = network.velocity(image, assigned, covariates)
        warped = network.warped_template(network.displacement(velocity), assigned, covariates)
        if covariates is not None:
            velocity = velocity - network.covariate_velocity(covariates)
        return refinement.loss(warped, image, velocity)["loss"]

    # -- files -----------------------------------------------------------------------------

    def _load(self) -> bool:
        """Continue from the checkpoint; returns whether all is done."""
        checkpoint = from_first(self._read)
        if checkpoint is None:
            return False
        if checkpoint.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: written in format {checkpoint.get('format')!r}, this version reads "
                f"{FORMAT}; discard the unfinished run with --learned_atlas#resume false"
            )
        load_weights(self.network, checkpoint, self.path)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.losses = list(checkpoint["losses"])
        return bool(checkpoint["done"])

    def _read(self) -> dict[str, Any] | None:
        return load_latest(self.path)

    def _save(self, done: bool) -> None:
        if not is_first():
            return
        save_checkpoint(
            {
                "format": FORMAT,
                "done": done,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "losses": self.losses,
            },
            self.path,
            keep_previous=True,
        )
