"""One iteration of the trainer: forward, loss, backward, step."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from scripts.atlas.network import AtlasNetwork
from scripts.data import EpochBatches
from scripts.engines.descent import descend
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.precision import autocast
from scripts.networks.unwrapping import unwrapped
from scripts.runtime.processes import add_up, world_size

__all__ = ["AtlasStep", "atlas_optimizer", "bare", "soft_assignment"]


def bare(network: nn.Module) -> AtlasNetwork:
    """The atlas network without the wrapper for several processes."""
    return unwrapped(network, AtlasNetwork)


def atlas_optimizer(
    network: AtlasNetwork, lr: float, template_lr_ratio: float = 5.0
) -> torch.optim.Adam:
    """Adam over the network and, as a separate group, the template.

    The template has as many parameters as voxels, and each gets a gradient from few subjects. It
    needs larger steps than the network, but at most ten times as large; otherwise it changes before
    the registration improves and stays blurred.

    Args:
        network: without wrapper.
        lr: of the convolutions.
        template_lr_ratio: the template's rate over the network's.
    """
    return torch.optim.Adam(
        [
            {"params": list(network.unet.parameters()), "lr": lr, "name": "network"},
            {"params": [network.template], "lr": lr * template_lr_ratio, "name": "template"},
        ]
    )


class AtlasStep:
    """The trainer's ``iteration_update``.

    MONAI's step calls ``loss(pred, label)``; an atlas has no label, several terms and two kinds of
    parameters. Autocast is handled here as well, because MONAI's supports only CUDA.

    With K > 1 the loss of a subject is the expectation over its soft assignment to the
    templates, r_k ~ mixture_k exp(-sharpness * loss_k): the E-step of a mixture whose M-step is
    the gradient.

    With several processes (the network is then in `DistributedDataParallel`, which averages their
    gradients) the loss of each is weighted by its share of the batch. The step is then that of one
    process with the whole batch, even if the batch can't be divided evenly.

    Args:
        loss: the weighted terms.
        dtype: of the convolutions.
        gradient_clip: largest norm of the network's gradient.
        mixture_sharpness: see above; only for K > 1.
        batches: gives the size of this process's part of a batch; None: equal parts.
    """

    def __init__(
        self,
        loss: AtlasLoss,
        dtype: str = "float32",
        gradient_clip: float = 1.0,
        mixture_sharpness: float = 50.0,
        batches: EpochBatches | None = None,
    ) -> None:
        self.loss = loss
        self.dtype = dtype
        self.gradient_clip = gradient_clip
        self.mixture_sharpness = mixture_sharpness
        self.batches = batches

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration.

        Args:
            engine: has network, inferer, optimizer and scaler.
            batch: ``image (B, C, *shape)`` log densities and ``subject`` names.

        Returns:
            ``loss`` and every term (scalars, of the batch of all processes),
            ``velocity (B, K, d, *reduced)``, ``responsibility (B, K)`` (0 for a stand-in),
            ``image`` and ``warped``, all detached, and ``subject``.
        """
        assert engine.network is not None and engine.optimizer is not None
        network = bare(engine.network)
        image = torch.as_tensor(batch["image"]).to(
            engine.state.device, non_blocking=engine.non_blocking
        )
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(image.device, self.dtype):
            estimate = engine.inferer(image, engine.network)
        engine.state.output = {"image": image, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

        terms, responsibility = self._terms(network, image, estimate)
        part = self._part(engine.state.iteration)
        engine.state.output.update(_over_processes(terms, part))
        engine.state.output.update(
            velocity=estimate["velocity"].detach(),
            warped=estimate["warped"].detach(),
            responsibility=responsibility * float(part > 0),
        )
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        local_loss = terms["loss"] * (
            part * world_size()
        )  # gradients are averaged over the processes
        descend(engine, local_loss, network.unet.parameters(), self.gradient_clip, "learned_atlas")
        network.project_template()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _part(self, iteration: int) -> float:
        """This process's share of the batch."""
        if self.batches is None:
            return 1 / world_size()
        local, whole = self.batches.sizes(iteration)
        return local / whole

    def _terms(
        self, network: AtlasNetwork, image: torch.Tensor, estimate: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Loss terms, and the share of each subject that each template explains."""
        warped, velocity = estimate["warped"], estimate["velocity"]
        if network.n_templates == 1:
            terms = self.loss(warped[:, 0], image, velocity[:, 0], network.mean_velocity[0])
            return terms, image.new_ones((len(image), 1))
        each = [
            [
                self.loss(warped[b : b + 1, k], image[b : b + 1], velocity[b : b + 1, k],
                          network.mean_velocity[k])
                for k in range(network.n_templates)
            ]
            for b in range(len(image))
        ]  # fmt: skip
        losses = torch.stack([torch.stack([t["loss"].detach() for t in row]) for row in each])
        responsibility = responsibilities(losses, network.mixture, self.mixture_sharpness)
        terms = {}
        for name in each[0][0]:
            values = torch.stack([torch.stack([t[name] for t in row]) for row in each])
            terms[name] = (values * responsibility).sum(1).mean()
        return terms, responsibility


def _over_processes(terms: dict[str, torch.Tensor], part: float) -> dict[str, torch.Tensor]:
    """Terms of the whole batch, detached, from each process's mean over its part."""
    values = torch.stack([term.detach() for term in terms.values()]) * part
    add_up(values)
    return dict(zip(terms, values.unbind(), strict=True))


def responsibilities(losses: torch.Tensor, mixture: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Soft assignment ``(B, K)``: softmax over k of ``log mixture_k - sharpness * loss_bk``."""
    return torch.softmax(mixture.clamp_min(1e-6).log() - sharpness * losses, dim=1)


def soft_assignment(
    network: AtlasNetwork,
    loss: AtlasLoss,
    image: torch.Tensor,
    velocities: list[torch.Tensor],
    sharpness: float,
) -> torch.Tensor:
    """Share of one subject that each template explains, ``(1, K)`` on the CPU, from its losses.

    Args:
        network: has templates, integration and mixture.
        loss: of the training.
        image: ``(1, C, *shape)`` log density.
        velocities: the subject's velocity to each template.
        sharpness: see `responsibilities`.
    """
    losses = []
    for k, velocity in enumerate(velocities):
        warped = network.warped_template(network.displacement(velocity), k)
        losses.append(loss(warped, image, velocity)["loss"])
    return responsibilities(torch.stack(losses)[None], network.mixture, sharpness).cpu()
