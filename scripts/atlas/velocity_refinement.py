"""Instance optimisation of one subject's velocity against the template."""

from __future__ import annotations

import math

import torch

from scripts.atlas.network import AtlasNetwork
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.grids import averaged
from scripts.spatial.field_extension import extended_field

__all__ = ["refine_velocity"]

_ALL = 0.999  # share of a block's voxels: all of them


def refine_velocity(
    network: AtlasNetwork,
    loss: AtlasLoss,
    image: torch.Tensor,
    velocity: torch.Tensor,
    iterations: int,
    lr: float = 0.3,
    template: int = 0,
    covariates: torch.Tensor | None = None,
    final_lr: float | None = None,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """Gradient descent (Adam) on an addition to the velocity, with the losses of the training.

    The addition is optimised before the network's Gaussian smoothing, v = v_0 + G w, so it is as
    regular as the network's output. The best velocity is returned, so the result is never worse
    than the start. If covariates determine the template, the smoothness applies only to the part of
    the velocity that they don't explain.

    Args:
        network: has the template and the integration; it isn't changed.
        loss: the weighted terms.
        image: ``(1, C, *shape)`` log density.
        velocity: ``(1, d, *reduced)``, the initial value.
        iterations: gradient steps.
        lr: step size in voxels.
        template: index of the template.
        covariates: coded, ``(1, p)``, of a conditional template.
        final_lr: size of the last step, to which it falls as a cosine; None: it stays.
        valid: ``(1, 1, *shape)`` bool, voxels of the image that count; None: all. What is added
            elsewhere continues what is added around.

    Returns:
        The velocity and its loss.
    """
    start = velocity.detach()
    known = None
    if valid is not None:
        known = averaged(valid.float(), network.field_resolution) > _ALL
    addition = torch.zeros_like(start).requires_grad_(True)
    optimizer = torch.optim.Adam([addition], lr=lr, betas=(0.9, 0.99))
    target = loss.target(image, valid)  # the same in every step
    expected = None if covariates is None else network.covariate_velocity(covariates)

    def cost(current: torch.Tensor, rough: bool = False) -> torch.Tensor:
        move = network.displacement(current, rough)
        warped = network.warped_template(move, template, covariates)
        deviation = current if expected is None else current - expected
        return loss(warped, image, deviation, valid=valid, target=target)["loss"]

    best, best_loss = start, math.inf
    for step in range(iterations):
        current = start + network.smoothing(addition)
        # The gradient of a rough flow is as good a direction, for three quarters of the time.
        total = cost(current, rough=True)
        if float(total.detach()) < best_loss:
            best, best_loss = current.detach(), float(total.detach())
        if final_lr is not None:
            part = (1 + math.cos(math.pi * step / max(1, iterations - 1))) / 2
            optimizer.param_groups[0]["lr"] = final_lr + (lr - final_lr) * part
        (addition.grad,) = torch.autograd.grad(total, addition)
        optimizer.step()
    with torch.no_grad():
        refined = start + network.smoothing(addition)
        value = float(cost(refined))
        if not value <= best_loss:  # the last steps went too far
            for candidate in (best, start):
                again = float(cost(candidate))
                if not value <= again:
                    refined, value = candidate, again
    return refined if known is None else extended_field(refined, known), value
