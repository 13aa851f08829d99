"""The learned atlas as one network: a template, a U-Net, the flow of its velocity, a warp."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import nn

from scripts.networks.described import DescribedNetwork, description_in
from scripts.networks.grids import reduced_shape
from scripts.networks.integration import VelocityIntegration
from scripts.networks.pair_inputs import pair_inputs
from scripts.networks.passes import PairPasses
from scripts.networks.precision import in_float32
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.spatial.warp import Warp

__all__ = ["NEGLIGIBLE_SHARE", "AtlasNetwork", "density_of", "log_density_of"]

NEGLIGIBLE_SHARE = 0.01
"""A template ignores subjects of which it explains less."""

logger = logging.getLogger(__name__)


def log_density_of(density: torch.Tensor, log_offset: float) -> torch.Tensor:
    """``log1p(x / log_offset)``: log(x + offset) up to a constant, exactly 0 where x is 0."""
    return torch.log1p(density / log_offset)


def density_of(log_density: torch.Tensor, log_offset: float) -> torch.Tensor:
    """The inverse of `log_density_of`."""
    return torch.expm1(log_density) * log_offset


class AtlasNetwork(DescribedNetwork):
    """K learnable templates and the network that registers them to a subject.

    The network predicts only fields, never densities, so the atlas contains nothing that isn't in
    the subjects. For a pair (template, subject) it gives a stationary velocity v, minus the
    cohort's mean velocity, so that the template stays in the middle of the cohort. The flow of v
    maps subject points to template points (the forward field: it warps the template to the
    subject); the flow of -v is the inverse.

    A conditional template depends on p coded covariates c of a person, which are 0 at the cohort's
    mean: T(c) = max(0, T + sum_j c_j S_j) o exp(sum_j c_j w_j), with images S_j (linear density)
    and velocities w_j. The velocities of subjects lead to the space of T, to first order
    exp(v) = exp(sum_j c_j w_j) o exp(residual), so that all fields end in one space whatever the
    covariates. Without ``covariates`` the template is that at the cohort's mean, T.

    A single pass over a pair seldom finds the whole displacement, so the U-Net can make several
    passes. Each gets the template as warped so far and the subject, both averaged by the pass's
    factor, and its output is added to the velocity. A coarse pass is cheap and has a large capture
    range; a later one corrects the rest, for training subjects and new ones alike. To first order
    the sum of velocities is the composition of their flows; later passes see the remaining error.
    All passes share the weights, so a network can be run with other passes than it was trained
    with. (Cascades: Zhao et al., ICCV 2019.)

    Dalca et al., Learning conditional deformable templates, NeurIPS 2019.

    Args:
        template: initial value ``(K, C, *shape)``, log density, >= 0.
        log_offset: the density at which log1p turns from linear to logarithmic.
        enc_features: see `RegistrationUNet`.
        dec_features: see `RegistrationUNet`.
        int_steps: squarings of the integration; 0: plain displacement.
        field_resolution: factor by which the field's grid is reduced.
        velocity_smoothing: of every velocity, standard deviation in voxels of the full grid.
        checkpointing: recompute activations in the backward pass.
        description: what else a reader of the checkpoint needs (grid, crop box,
            normalisation...); see `DescribedNetwork`.
        covariates: p, columns that the template depends on; 0: an unconditional template.
        passes: for each pass of the U-Net the factor by which the pair is averaged, powers of 2.
        inputs: what the U-Net is shown of a pair: both ``images``, channel by channel, or what
            `pair_inputs` names, such as ``forces``, of all channels together.
        unet: replaces one with the features above; its field has a grid reduced by
            ``field_resolution``, in voxels of the full one.
        integration: replaces one with ``int_steps``.
        smoothing: replaces one with ``velocity_smoothing``.
        warp: replaces a linear one with zeros outside.
    """

    template: torch.Tensor
    support: torch.Tensor
    mean_velocity: torch.Tensor
    mixture: torch.Tensor
    input_scale: torch.Tensor
    density_slopes: torch.Tensor
    velocity_slopes: torch.Tensor

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
        covariates: int = 0,
        passes: Sequence[int] = (1,),
        inputs: str = "images",
        unet: RegistrationUNet | None = None,
        integration: VelocityIntegration | None = None,
        smoothing: GaussianSmoothing | None = None,
        warp: Warp | None = None,
    ) -> None:
        super().__init__(description)
        # A MetaTensor parameter can't be loaded with weights_only=True: only plain tensors can.
        start = torch.as_tensor(np.asarray(template), dtype=torch.float32).clone()
        self.shape = tuple(start.shape[2:])
        self.n_templates, self.channels = start.shape[:2]
        self.spatial_dims = len(self.shape)
        self.log_offset = log_offset
        self.field_resolution = field_resolution
        self.reduced = reduced_shape(self.shape, field_resolution)
        self.passes = tuple(passes)
        self.template = nn.Parameter(start)
        # Where no subject has density (after any plausible displacement) the template is exactly 0.
        self.register_buffer("support", torch.ones_like(start[:1]))
        self.register_buffer(
            "mean_velocity", torch.zeros(self.n_templates, self.spatial_dims, *self.reduced)
        )
        self.register_buffer("mixture", torch.full((self.n_templates,), 1 / self.n_templates))
        self.register_buffer("input_scale", start.amax().clamp_min(1e-6).reciprocal())
        self.covariates = covariates
        if covariates:
            if self.n_templates > 1:
                raise ValueError("a mixture of templates can't depend on covariates")
            self.register_buffer("density_slopes", torch.zeros(covariates, *start.shape[1:]))
            self.register_buffer(
                "velocity_slopes", torch.zeros(covariates, self.spatial_dims, *self.reduced)
            )
        self.inputs = None if inputs == "images" else pair_inputs(inputs)
        self.unet = unet or RegistrationUNet(
            self.spatial_dims,
            2 * self.channels if self.inputs is None else self.inputs.channels(self.spatial_dims),
            enc_features,
            dec_features,
            factor=field_resolution,
            checkpointing=checkpointing,
        )
        if self.spatial_dims == 3:
            self.unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.smoothing = smoothing or GaussianSmoothing(velocity_smoothing / field_resolution)
        self.integration = integration or VelocityIntegration(int_steps, field_resolution)
        self.warp = warp or Warp()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; from an atlas of another cohort, only those that don't depend on the
        cohort.

        Fine-tuning tools load a published model into the network of a new cohort. Template, box and
        description then stay those of the new cohort. The U-Net, which works on any grid, and the
        scale of its input are taken over if the architecture is the same. From a model of the same
        cohort, everything is taken over except the description of its run.
        """
        theirs, ours = description_in(state_dict), self.description
        if "cohort" in theirs and "cohort" in ours:
            same = theirs["cohort"] == ours["cohort"] and all(
                state_dict[name].shape == getattr(self, name).shape
                for name in ("template", "mean_velocity")
            )
            taken = state_dict if same else self._start_from(state_dict)
            state_dict = {**taken, "described": self.described}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _start_from(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """These weights, with the U-Net of another cohort's model if it fits."""
        state = self.state_dict()
        unet = {name: value for name, value in state.items() if name.startswith("unet.")}
        alike = all(
            name in state_dict and state_dict[name].shape == value.shape
            for name, value in unet.items()
        )
        if not alike:
            logger.warning(
                "the architecture of the given model's U-Net differs from this network's, so "
                "it isn't used"
            )
            return state
        logger.info("training starts with the U-Net of another cohort's model")
        return {**state, **{name: state_dict[name] for name in (*unet, "input_scale")}}

    @in_float32
    def template_density(self, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """The templates in linear density.

        Args:
            covariates: coded, ``(B, p)``.

        Returns:
            ``(K, C, *shape)``; with covariates ``(B, C, *shape)``.
        """
        if covariates is None:
            return density_of(self.template.detach(), self.log_offset)
        move = self.displacement(self.covariate_velocity(covariates))
        return self.warp(self.undeformed_density(covariates), move)

    @in_float32
    def undeformed_density(self, covariates: torch.Tensor) -> torch.Tensor:
        """The conditional template's density before its deformation, ``(B, C, *shape)``."""
        density = density_of(self.template.detach(), self.log_offset)
        change = torch.einsum("bp,p...->b...", covariates, self.density_slopes)
        return (density + change).clamp_min(0)

    @in_float32
    def covariate_velocity(self, covariates: torch.Tensor) -> torch.Tensor:
        """The part of a velocity due to covariates ``(B, p)``: ``(B, d, *reduced)``."""
        return torch.einsum("bp,p...->b...", covariates, self.velocity_slopes)

    def set_support(self, support: torch.Tensor) -> None:
        """Set where the template may be above zero (bool, broadcast to ``(1, C, *shape)``)."""
        self.support.copy_(support.to(self.support))
        self.project_template()

    @torch.no_grad()
    def project_template(self) -> None:
        """Project onto the feasible set after a gradient step: >= 0, and 0 outside the support."""
        self.template.clamp_(min=0).mul_(self.support)

    def velocity(
        self,
        image: torch.Tensor,
        template: int = 0,
        covariates: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        passes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Stationary velocity of template k to each image, centred in evaluation mode.

        During training the field isn't centred: subtracting a running mean would hide its drift
        from the loss.

        Args:
            image: ``(B, C, *shape)`` log density.
            template: index of the template.
            covariates: coded, ``(B, p)``: the network then gets the template at these covariates.
            valid: ``(B, 1, *shape)`` bool, voxels of the image that count, see `PairPasses`; None:
                all.
            passes: in place of the network's.

        Returns:
            ``(B, d, *reduced)`` in voxels of the full grid, float32.
        """
        moving = self.template[template].expand(image.shape[0], *image.shape[1:])
        if covariates is not None:
            moving = log_density_of(self.template_density(covariates), self.log_offset)
        velocity = self._pair_passes(moving, image, valid).run(passes or self.passes)[-1]
        if self.training:
            return velocity
        velocity = velocity - self.mean_velocity[template]
        return velocity if covariates is None else velocity + self.covariate_velocity(covariates)

    def _pair_passes(
        self, moving: torch.Tensor, image: torch.Tensor, valid: torch.Tensor | None = None
    ) -> PairPasses:
        """Template and images as the U-Net is shown them."""
        scale: torch.Tensor = self.input_scale
        if self.inputs is not None:
            with torch.no_grad():
                moving, image = self._in_all(moving), self._in_all(image)
                axes = list(range(1, moving.dim()))
                scale = moving.amax(axes, keepdim=True).clamp_min(1e-6).reciprocal()
        return PairPasses(
            self.unet, self.smoothing, self.integration, self.warp, moving, image, scale,
            self.inputs, valid,
        )  # fmt: skip

    def _in_all(self, log_density: torch.Tensor) -> torch.Tensor:
        """The log density of all channels together, ``(B, 1, *shape)``."""
        if self.channels == 1:
            return log_density
        density = density_of(log_density, self.log_offset).sum(1, keepdim=True)
        return log_density_of(density, self.log_offset)

    @in_float32
    def displacement(self, velocity: torch.Tensor, rough: bool = False) -> torch.Tensor:
        """Forward displacement ``(B, d, *shape)`` of a velocity.

        Args:
            velocity: ``(B, d, *reduced)``.
            rough: see `VelocityIntegration`.
        """
        return self.integration(velocity, self.shape, rough=rough)

    @in_float32
    def displacements(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and inverse displacement of a velocity."""
        return self.integration.both(velocity, self.shape)

    @in_float32
    def inverse_displacement(self, velocity: torch.Tensor) -> torch.Tensor:
        """The second of `displacements`."""
        return self.integration.inverse(velocity, self.shape)

    @in_float32
    def warped_template(
        self,
        displacement: torch.Tensor,
        template: int = 0,
        covariates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Template k (log density) in the subject's space, ``(B, C, *shape)``."""
        moving = self.template[template].expand(displacement.shape[0], -1, *self.shape)
        if covariates is not None:
            moving = log_density_of(self.undeformed_density(covariates), self.log_offset)
        return self.warp(moving, displacement)

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

    def match(
        self,
        image: torch.Tensor,
        covariates: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Register each image to the template that becomes most similar to it.

        Similarity is the cosine of log densities.

        Args:
            image: ``(B, C, *shape)`` log density.
            covariates: coded, ``(B, p)``.
            valid: ``(B, 1, *shape)`` bool, voxels of the image that count; None: all.

        Returns:
            Velocity ``(B, d, *reduced)``, and the index of its template ``(B,)`` int64.
        """
        which = torch.zeros(len(image), dtype=torch.long, device=image.device)
        best = self.velocity(image, 0, covariates, valid)
        if self.n_templates > 1:
            score = self._likeness(image, best, which, valid)
            for k in range(1, self.n_templates):
                velocity = self.velocity(image, k, valid=valid)
                other = torch.full_like(which, k)
                likeness = self._likeness(image, velocity, other, valid)
                better = likeness > score
                score, which = (
                    torch.where(better, likeness, score),
                    torch.where(better, other, which),
                )
                best = torch.where(better.view(-1, *[1] * (best.dim() - 1)), velocity, best)
        return best, which

    @in_float32
    def predict(
        self,
        velocity: torch.Tensor,
        template: torch.Tensor,
        covariates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Templates in the subjects' space in linear density, ``(B, C, *shape)``.

        Args:
            velocity: ``(B, d, *reduced)``.
            template: index of the template, ``(B,)`` int64.
            covariates: coded, ``(B, p)``.
        """
        density = self.template_density()
        if covariates is not None:
            moving = self.undeformed_density(covariates)
        elif self.n_templates == 1:
            moving = density.expand(len(velocity), *density.shape[1:])
        else:
            moving = density[template]
        return self.warp(moving, self.displacement(velocity))

    @in_float32
    def _likeness(
        self,
        image: torch.Tensor,
        velocity: torch.Tensor,
        template: torch.Tensor,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        predicted = log_density_of(self.predict(velocity, template), self.log_offset)
        if valid is not None:
            predicted, image = predicted.where(valid, 0), image.where(valid, 0)
        return torch.nn.functional.cosine_similarity(predicted.flatten(1), image.flatten(1), dim=1)

    def forward(
        self, image: torch.Tensor, covariates: torch.Tensor | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Train: the result of `register_to`. Eval: the template's density in the subject's space.

        With several templates, evaluation gives the one that is most similar to the image. The
        record of transforms in a `MetaTensor` is copied to the prediction: tools that call the
        network directly use it to invert them.

        Args:
            image: ``(B, C, *shape)`` log density on the template's grid.
            covariates: coded, ``(B, p)``, of a conditional template; only used in evaluation mode.
        """
        if self.training:
            return self.register_to(image)
        if not isinstance(image, MetaTensor):
            return self.predict(*self.match(image, covariates), covariates)
        plain = image.as_tensor()
        predicted = self.predict(*self.match(plain, covariates), covariates)
        return convert_to_dst_type(predicted, image)[0]
