"""The learned atlas as one network: a template, a U-Net, the flow of its velocity, a warp."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.networks.integration import VelocityIntegration, reduced_shape
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.networks.warp import warp

__all__ = ["AtlasNetwork", "density_of", "log_density_of"]


def log_density_of(density: torch.Tensor, log_offset: float) -> torch.Tensor:
    """``log1p(x / log_offset)``: log(x + offset) up to a constant, exactly 0 where x is 0."""
    return torch.log1p(density / log_offset)


def density_of(log_density: torch.Tensor, log_offset: float) -> torch.Tensor:
    """The inverse of `log_density_of`."""
    return torch.expm1(log_density) * log_offset


class AtlasNetwork(nn.Module):
    """K learnable templates and the network that registers them to a subject.

    The network predicts fields only, never densities, so that whatever the atlas shows was in
    the subjects. For a pair (template, subject) it gives a stationary velocity v, less the
    cohort's mean velocity: the template stays in the cohort's middle. Its flow maps subject
    points to template points (the forward field: it warps the template to the subject); the flow
    of -v is the inverse.

    Dalca et al., Learning conditional deformable templates, NeurIPS 2019.

    Args:
        template: starting value ``(K, C, *shape)``, log density, not negative.
        log_offset: the density at which log1p turns from linear to logarithmic.
        enc_features: see `RegistrationUNet`.
        dec_features: see `RegistrationUNet`.
        int_steps: squarings of the integration; 0: plain displacement.
        field_resolution: the field lives on a grid reduced by this factor.
        velocity_smoothing: of every velocity, standard deviation in voxels of the full grid.
        checkpointing: recompute activations in the backward pass.
        description: what else a reader of the checkpoint must know (grid, crop box,
            normalisation...), JSON-able; travels in the state dict as the buffer `described`.
    """

    template: torch.Tensor
    support: torch.Tensor
    mean_velocity: torch.Tensor
    mixture: torch.Tensor
    input_scale: torch.Tensor
    described: torch.Tensor

    def __init__(
        self,
        template: np.ndarray | torch.Tensor,
        log_offset: float = 1e-3,
        enc_features: Sequence[int] = (16, 32, 32, 32),
        dec_features: Sequence[int] = (32, 32, 32, 16, 16),
        int_steps: int = 7,
        field_resolution: int = 2,
        velocity_smoothing: float = 3.0,
        checkpointing: bool = False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # A MetaTensor parameter can't be loaded with weights_only=True: plain tensors only.
        start = torch.as_tensor(np.asarray(template), dtype=torch.float32).clone()
        self.shape = tuple(start.shape[2:])
        self.n_templates, self.channels = start.shape[:2]
        self.spatial_dims = len(self.shape)
        self.log_offset = log_offset
        self.field_resolution = field_resolution
        self.reduced = reduced_shape(self.shape, field_resolution)
        self.template = nn.Parameter(start)
        # Where no subject carries density (after any plausible move) the template is exactly 0.
        self.register_buffer("support", torch.ones_like(start[:1]))
        self.register_buffer(
            "mean_velocity", torch.zeros(self.n_templates, self.spatial_dims, *self.reduced)
        )
        self.register_buffer("mixture", torch.full((self.n_templates,), 1 / self.n_templates))
        self.register_buffer("input_scale", start.amax().clamp_min(1e-6).reciprocal())
        text = json.dumps(dict(description or {}), sort_keys=True).encode()
        self.register_buffer("described", torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.unet = RegistrationUNet(
            self.spatial_dims,
            2 * self.channels,
            enc_features,
            dec_features,
            factor=field_resolution,
            checkpointing=checkpointing,
        )
        if self.spatial_dims == 3:
            self.unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.smoothing = GaussianSmoothing(velocity_smoothing / field_resolution)
        self.integration = VelocityIntegration(int_steps, field_resolution)

    @property
    def description(self) -> dict[str, Any]:
        """What the checkpoint says of itself."""
        return json.loads(bytes(self.described.cpu().numpy()).decode())

    def template_density(self) -> torch.Tensor:
        """The templates in linear density, ``(K, C, *shape)``."""
        return density_of(self.template.detach(), self.log_offset)

    def set_support(self, support: torch.Tensor) -> None:
        """Fix where the template may be above zero (bool, broadcast to ``(1, C, *shape)``)."""
        self.support.copy_(support.to(self.support))
        self.project_template()

    @torch.no_grad()
    def project_template(self) -> None:
        """Back to the feasible set after a gradient step: not negative, 0 off the support."""
        self.template.clamp_(min=0).mul_(self.support)

    def velocity(self, image: torch.Tensor, template: int = 0) -> torch.Tensor:
        """Stationary velocity of template k to each image, centred in evaluation.

        Training sees the field uncentred: subtracting a running mean there would hide its drift
        from the loss.

        Args:
            image: ``(B, C, *shape)`` log density.
            template: which of the K templates.

        Returns:
            ``(B, d, *reduced)`` in voxels of the full grid, float32.
        """
        fixed = self.template[template].expand(image.shape[0], *image.shape[1:])
        pair = torch.cat([fixed, image], dim=1) * self.input_scale
        if self.spatial_dims == 3:
            pair = pair.contiguous(memory_format=torch.channels_last_3d)
        field = self.unet(pair)
        velocity = self.smoothing(field.float().contiguous())
        return velocity if self.training else velocity - self.mean_velocity[template]

    def displacement(self, velocity: torch.Tensor) -> torch.Tensor:
        """Forward displacement ``(B, d, *shape)`` of a velocity."""
        with torch.autocast(velocity.device.type, enabled=False):
            return self.integration(velocity, self.shape)

    def displacements(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and inverse displacement of a velocity."""
        with torch.autocast(velocity.device.type, enabled=False):
            return self.integration.both(velocity, self.shape)

    def warped_template(self, displacement: torch.Tensor, template: int = 0) -> torch.Tensor:
        """Template k (log density) in the subject's space, ``(B, C, *shape)``."""
        moving = self.template[template].expand(displacement.shape[0], -1, *self.shape)
        with torch.autocast(displacement.device.type, enabled=False):
            return warp(moving, displacement)

    def register_to(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every template registered to every image.

        Returns:
            ``velocity (B, K, d, *reduced)`` and ``warped (B, K, C, *shape)`` (log density).
        """
        velocities, warped = [], []
        for k in range(self.n_templates):
            velocity = self.velocity(image, k)
            velocities.append(velocity)
            warped.append(self.warped_template(self.displacement(velocity), k))
        return {"velocity": torch.stack(velocities, 1), "warped": torch.stack(warped, 1)}

    def match(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image registered to the template that comes to look most like it.

        Likeness is the cosine of log densities.

        Args:
            image: ``(B, C, *shape)`` log density.

        Returns:
            velocity ``(B, d, *reduced)``, and which of the templates it is to ``(B,)`` int64.
        """
        which = torch.zeros(len(image), dtype=torch.long, device=image.device)
        best = self.velocity(image, 0)
        if self.n_templates > 1:
            score = self._likeness(image, best, which)
            for k in range(1, self.n_templates):
                velocity, other = self.velocity(image, k), torch.full_like(which, k)
                found = self._likeness(image, velocity, other)
                better = found > score
                score, which = torch.where(better, found, score), torch.where(better, other, which)
                best = torch.where(better.view(-1, *[1] * (best.dim() - 1)), velocity, best)
        return best, which

    def predict(self, velocity: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
        """Templates in the subjects' space in linear density, ``(B, C, *shape)``.

        Args:
            velocity: ``(B, d, *reduced)``.
            template: which of the templates, ``(B,)`` int64.
        """
        density = self.template_density()
        if self.n_templates == 1:
            moving = density.expand(len(velocity), *density.shape[1:])
        else:
            moving = density[template]
        with torch.autocast(velocity.device.type, enabled=False):
            return warp(moving, self.displacement(velocity))

    def _likeness(
        self, image: torch.Tensor, velocity: torch.Tensor, template: torch.Tensor
    ) -> torch.Tensor:
        predicted = log_density_of(self.predict(velocity, template), self.log_offset)
        return torch.nn.functional.cosine_similarity(predicted.flatten(1), image.flatten(1), dim=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Train: what `register_to` gives. Eval: the template's density in the subject's space.

        With several templates, evaluation gives the one that looks most like the image.

        Args:
            image: ``(B, C, *shape)`` log density on the template's grid.
        """
        if self.training:
            return self.register_to(image)
        return self.predict(*self.match(image))
