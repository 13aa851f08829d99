"""Polishing one subject's velocity against the template, from wherever it starts."""

from __future__ import annotations

import torch

from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.atlas_network import AtlasNetwork

__all__ = ["refine_velocity"]


def refine_velocity(
    network: AtlasNetwork,
    loss: AtlasLoss,
    image: torch.Tensor,
    velocity: torch.Tensor,
    iterations: int,
    lr: float = 0.1,
    template: int = 0,
    covariates: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """Gradient descent (Adam) on the velocity itself, with the training's own losses.

    The best velocity seen is returned, so that the result is never worse than its start. Where
    covariates make the template, the smoothness is asked of what of the velocity they don't
    explain: a move that everybody of that age makes costs nothing.

    Args:
        network: holds the template and the integration; it isn't changed.
        loss: the weighted terms.
        image: ``(1, C, *shape)`` log density.
        velocity: ``(1, d, *reduced)``, the start.
        iterations: gradient steps.
        lr: step size in voxels.
        template: which of the K templates.
        covariates: coded, ``(1, p)``, of a conditional template.

    Returns:
        The velocity and its loss.
    """
    current = velocity.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=lr, betas=(0.9, 0.99))
    expected = None if covariates is None else network.covariate_velocity(covariates)
    best, best_loss = velocity.detach().clone(), float("inf")
    for step in range(iterations + 1):
        last = step == iterations
        with torch.set_grad_enabled(not last):
            warped = network.warped_template(network.displacement(current), template, covariates)
            own = current if expected is None else current - expected
            total = loss(warped, image, own)["loss"]
        value = float(total.detach())
        if value < best_loss:
            best, best_loss = current.detach().clone(), value
        if not last:
            (current.grad,) = torch.autograd.grad(total, current)
            optimizer.step()
    return best, best_loss
