"""One subject registered to the atlas: velocity, fields, warped maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.velocity_refinement import refine_velocity
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.precision import autocast
from scripts.spatial.fields import on_full_grid
from scripts.spatial.grid import CropBox
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.unfolding import unfolded_velocity
from scripts.spatial.warp import warp

__all__ = ["Registration", "estimate_velocity", "fields_of", "optimised_velocity"]


@dataclass(frozen=True)
class Registration:
    """Both fields of one subject on the whole grid, and their Jacobians.

    Attributes:
        to_template: inverse field ``(1, d, *grid)`` in voxels on the template's grid; maps template
            points to subject points, so it resamples the subject into template space.
        to_subject: forward field on the subject's grid; resamples the template.
        jacobian: `jacobian_summary` of each, under the same names.
    """

    to_template: torch.Tensor
    to_subject: torch.Tensor
    jacobian: dict[str, dict[str, float]]

    @property
    def smallest_jacobian(self) -> float:
        """Smallest determinant of both fields, by either difference scheme."""
        return min(min(s["min"], s["corner_min"]) for s in self.jacobian.values())

    @property
    def folds(self) -> bool:
        """Whether a determinant is not positive, by either difference scheme."""
        # Not `<= 0`: this also catches NaN in a field that isn't finite.
        return not all(s["min"] > 0 and s["corner_min"] > 0 for s in self.jacobian.values())

    @property
    def finite(self) -> bool:
        """Whether all displacements are finite."""
        return all(bool(torch.isfinite(f).all()) for f in (self.to_template, self.to_subject))

    def subject_in_template(self, density: torch.Tensor) -> torch.Tensor:
        """Density ``(1, C, *grid)`` resampled into template space (interpolated)."""
        return warp(density, self.to_template)


@torch.no_grad()
def estimate_velocity(
    network: AtlasNetwork,
    image: torch.Tensor,
    dtype: str = "float32",
    template: int = 0,
    loss: AtlasLoss | None = None,
    iterations: int = 0,
    lr: float = 0.3,
    covariates: torch.Tensor | None = None,
    passes: Sequence[int] | None = None,
) -> torch.Tensor:
    """The network's velocity for one subject, optionally refined by `refine_velocity`.

    Args:
        network: in eval mode.
        image: ``(1, C, *crop)`` log density.
        dtype: of the convolutions.
        template: index of the template.
        loss: for the refinement.
        iterations: of the refinement; 0: only the network.
        lr: of the refinement.
        covariates: coded, ``(1, p)``, of a conditional template.
        passes: in place of the network's.
    """
    with autocast(image.device, dtype):
        velocity = network.velocity(image, template, covariates, passes=passes)
    if iterations and loss is not None:
        velocity = optimised_velocity(
            network, loss, image, velocity, iterations, lr, template, covariates
        )
    return velocity


def optimised_velocity(
    network: AtlasNetwork,
    loss: AtlasLoss,
    image: torch.Tensor,
    velocity: torch.Tensor,
    iterations: int,
    lr: float = 0.3,
    template: int = 0,
    covariates: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Result of `refine_velocity`, smoothed where it is close to folding."""
    with torch.enable_grad():
        refined, _ = refine_velocity(
            network, loss, image, velocity, iterations, lr, template, covariates, valid=valid
        )
    return unfolded_velocity(network, refined)


@torch.no_grad()
def fields_of(
    network: AtlasNetwork,
    velocity: torch.Tensor,
    crop: CropBox,
    shape: tuple[int, ...],
    towards: torch.Tensor | None = None,
) -> Registration:
    """Both fields of a velocity on the whole grid, with their Jacobians.

    Args:
        network: does the integration.
        velocity: ``(1, d, *reduced)``.
        crop: the box in which the network works.
        shape: the whole grid.
        towards: velocity ``(1, d, *reduced)`` of a conditional template; the fields then lead to it
            instead of the template at the cohort's mean.
    """
    forward, inverse = network.displacements(velocity)
    if towards is not None:
        # From points of the conditional template to those of the mean one, and back.
        to_mean, from_mean = network.displacements(towards)
        forward = _then(forward, from_mean)
        inverse = _then(to_mean, inverse)
    to_subject = on_full_grid(forward, crop, shape)
    to_template = on_full_grid(inverse, crop, shape)
    return Registration(
        to_template,
        to_subject,
        {
            "from-subject_to-template": jacobian_summary(to_template[0]),
            "from-template_to-subject": jacobian_summary(to_subject[0]),
        },
    )


def _then(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Displacement of ``x -> second(first(x))``."""
    return first + warp(second, first, padding_mode="border")
