"""The network learns the template that the refinement left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.data import EpochBatches
from scripts.engines.handlers.learning_rate import rate_share
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
    """Trains the network on, the template as it stands, so that new subjects need less refinement.

    While template and network are learned together the network follows a blurred, moving target;
    the rounds of refinement then leave it behind. Against the finished template the same losses
    say clearly where everything belongs. It now learns to look several times (see `AtlasNetwork`),
    which would cost as much more in every epoch before and bring the template nothing that the
    refinement doesn't. The template, the cohort's own velocities and so the maps stay as they are;
    at the end the network is centred again.

    Subjects of a batch are gone through one by one, and over several processes by each one's
    share: the gradient is that of the whole batch, memory that of one subject. A checkpoint after
    each epoch, with an order of subjects that follows from seed and epoch alone, lets an
    interrupted run on a CPU end with the bits of an unbroken one.

    Args:
        refinement: done with its rounds; brings network, subjects, loss and device.
        batches: the order of the subjects, of this process.
        path: of the checkpoint.
        epochs: how many; 0: nothing is done.
        lr: highest learning rate.
        gradient_clip: largest norm of the gradient.
        passes: of the network from here on.
    """

    def __init__(
        self,
        refinement: CohortRefinement,
        batches: EpochBatches,
        path: str | Path,
        epochs: int = 0,
        lr: float = 1.5e-3,
        gradient_clip: float = 1.0,
        passes: Sequence[int] = (1,),
    ) -> None:
        self.refinement = refinement
        self.network = refinement.network
        self.batches = batches
        self.path = Path(path)
        self.epochs = epochs
        self.lr = lr
        self.gradient_clip = gradient_clip
        self.passes = tuple(passes)
        self.parameters = list(self.network.unet.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.losses: list[float] = []  # means of the epochs

    def run(self) -> None:
        """Train, centre the network, and leave it in the refinement's state; resumes by itself.

        Raises:
            TrainingError: a loss isn't finite; the checkpoint stays that of the epoch before.
            CheckpointError: the checkpoint is not of this run.
        """
        if self.epochs == 0:
            return
        self.network.passes = self.passes
        if self._load():
            self.refinement.save()  # a damaged state may have been given up for the one before
            return
        done, length = len(self.losses), len(self.batches)
        self.network.eval()  # fields as new subjects get them: centred, with their covariates
        self.network.unet.train()  # only so that activations are recomputed where that is asked
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
        logger.info("network alone: loss %.3f to %.3f", self.losses[0], self.losses[-1])
        self.refinement.recentre()
        self.refinement.save()
        self._save(done=True)

    def _step(self, indices: list[int], step: int, total: int) -> float:
        """One batch; returns its mean loss over all processes."""
        own, whole = self.batches.sizes(step + 1)
        share = rate_share(step / total, (step + 1) / _WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)  # also where no subject is this process's
        loss = torch.zeros((), dtype=torch.float64)
        for index in indices[:own]:
            part = self._loss(index) / whole
            part.backward(inputs=self.parameters)  # the template stays as it is
            loss += float(part.detach())
        add_up(loss, *(p.grad for p in self.parameters if p.grad is not None))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"loss of the network's fine-tuning is not finite ({float(loss):g}) in epoch "
                f"{step // len(self.batches) + 1}; lower learned_atlas#refine#network_lr or set "
                "learned_atlas#refine#network_epochs 0, and start afresh with "
                "--learned_atlas#resume false"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        self.optimizer.step()
        return float(loss)

    def _loss(self, index: int) -> torch.Tensor:
        """A subject's, to the template that explains it best."""
        network, refinement = self.network, self.refinement
        image, covariates = refinement.image(index), refinement.covariates(index)
        home = refinement.home(index)
        with autocast(image.device, refinement.dtype):
            velocity = network.velocity(image, home, covariates)
        warped = network.warped_template(network.displacement(velocity), home, covariates)
        if covariates is not None:
            velocity = velocity - network.covariate_velocity(covariates)
        return refinement.loss(warped, image, velocity)["loss"]

    # -- files -----------------------------------------------------------------------------

    def _load(self) -> bool:
        """Go on from the checkpoint; returns whether all is done."""
        found = from_first(self._read)
        if found is None:
            return False
        if found.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: written in format {found.get('format')!r}, this version reads "
                f"{FORMAT}; throw the unfinished run away with --learned_atlas#resume false"
            )
        load_weights(self.network, found, self.path)
        self.optimizer.load_state_dict(found["optimizer"])
        self.losses = list(found["losses"])
        return bool(found["done"])

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
