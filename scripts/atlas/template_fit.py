"""The template that fits registered subjects best, in least squares; a function of covariates too.

All functions take the subjects of this process one by one, sum over all processes, and write their
result into the network. Memory doesn't grow with the number of subjects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from scripts.atlas.covariate_regression import CovariateRegression, shrunken
from scripts.atlas.network import AtlasNetwork, density_of, log_density_of
from scripts.runtime.processes import add_up
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.warp import warp

__all__ = [
    "fit_conditional_template",
    "fit_templates",
    "fit_velocity_slopes",
    "in_template_space",
]


def fit_templates(
    network: AtlasNetwork, subjects: Iterable[tuple[int, torch.Tensor, torch.Tensor]]
) -> None:
    """Replace each template by sum_i J_i d_i(phi_i(x)) / sum_i J_i over its subjects.

    ``d`` is a subject's density, ``phi`` leads from template to subject, and ``J`` is its Jacobian
    determinant (Ma et al., NeuroImage 2008). A template without subjects doesn't change.

    Args:
        network: whose templates are replaced.
        subjects: of each the index of its template, and its density and J, see
            `in_template_space`.
    """
    total = torch.zeros_like(network.template)
    weight = total.new_zeros((network.n_templates, 1, *network.shape))
    for k, density, size in subjects:
        total[k] += size * density
        weight[k] += size
    add_up(total, weight)
    for k in range(network.n_templates):
        if float(weight[k].amax()) > 0:
            density = total[k] / weight[k].clamp_min(1e-6)
            network.template[k] = log_density_of(density, network.log_offset)
    network.project_template()


def fit_conditional_template(
    network: AtlasNetwork,
    subjects: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    window: int,
) -> None:
    """Replace the template and its density slopes; both are 0 outside the support.

    Args:
        network: with covariates.
        subjects: of each its coded covariates ``(p,)``, and its density and J, see
            `in_template_space`.
        window: side, in voxels, of the windows in which slopes are shrunk (`shrunken`).
    """
    inside = network.support[0].bool().any(0)
    fit = CovariateRegression(
        network.covariates, network.channels, int(inside.sum()), True, network.template.device
    )
    for covariates, density, size in subjects:
        fit.add(density[:, inside], covariates, size[inside])
    fit.join()
    slopes, variance = fit.solve()
    shape = network.density_slopes.shape
    full = slopes.new_zeros(shape)
    spread = slopes.new_zeros((shape[0], *shape[2:]))
    full[:, :, inside], spread[:, inside] = slopes, variance
    fitted = shrunken(full, spread, window) * network.support
    density = fitted.new_zeros(shape[1:])
    density[:, inside] = fit.intercept(fitted[:, :, inside]).clamp_min(0)
    network.template[0] = log_density_of(density, network.log_offset)
    network.density_slopes.copy_(fitted)
    network.project_template()


def fit_velocity_slopes(
    network: AtlasNetwork,
    subjects: Iterable[tuple[torch.Tensor, torch.Tensor]],
    window: int,
) -> None:
    """Replace the deformation of a conditional template: velocities regressed on covariates.

    Args:
        network: with covariates.
        subjects: coded covariates ``(p,)`` and velocity ``(1, d, *reduced)`` of each.
        window: as for `fit_conditional_template`, in voxels of the full grid.
    """
    shape = network.velocity_slopes.shape[1:]
    fit = CovariateRegression(
        network.covariates, shape[0], math.prod(shape[1:]), device=network.template.device
    )
    for covariates, velocity in subjects:
        fit.add(velocity[0].flatten(1), covariates)
    fit.join()
    slopes, variance = fit.solve()
    reduced = 2 * (window // 2 // network.field_resolution) + 1
    network.velocity_slopes.copy_(
        shrunken(slopes.reshape(-1, *shape), variance.reshape(-1, *shape[1:]), reduced)
    )


def in_template_space(
    network: AtlasNetwork, image: torch.Tensor, velocity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A subject's density ``(C, *shape)`` at the template's voxels, and J there, at least 0.

    Args:
        network: does the integration.
        image: log density ``(1, C, *shape)``.
        velocity: ``(1, d, *reduced)``.
    """
    inverse = network.inverse_displacement(velocity)
    size = jacobian_determinant(inverse[0]).clamp_min(0)
    return warp(density_of(image, network.log_offset), inverse)[0], size
