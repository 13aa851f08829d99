"""Wasserstein barycentre of density maps: the mean under transport of mass.

Averaging superimposes maps, so bundles that are apart give a blurred double. The barycentre is the
map that all of them reach with the least transport: two shifted copies of a bundle give that bundle
halfway between. Feydy et al. ("Fast and Scalable Optimal Transport for Brain Tractograms", MICCAI
2019) suggest it as an atlas of tracts.

The method is the debiased Sinkhorn iteration of Janati, Cuturi and Gramfort ("Debiased Sinkhorn
barycenters", ICML 2020) on the voxel grid. Its Gaussian kernel is separable, so one application is
a small matrix product per axis. (geomloss 0.3.1 has this for square images with sides of a power of
two; its `ImagesBarycenter` doesn't accept volumes.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["OutOfReachError", "log_gaussian", "wasserstein_barycentre"]

_MASS = 1e-6  # of the barycentre's maximum: voxels with less don't need to be reached
_LEAST = 1e-300  # smaller sums of float64 exponentials are replaced by this


class OutOfReachError(ValueError):
    """The maps are so many blurs apart that float64 can't represent the transport."""


def log_gaussian(log_density: Tensor, kernels: Sequence[Tensor], least: float = _LEAST) -> Tensor:
    """``log(K exp(h))`` for a Gaussian kernel K that is a product over axes.

    The largest value of each line is subtracted before the exponential, so that nothing overflows.

    Args:
        log_density: h, ``(*shape)`` float64; -inf where the density is 0.
        kernels: one ``(n, n)`` matrix per axis.
        least: replaces sums that are too small for float64 (more than 37 blurs from any mass).
    """
    result = log_density
    for axis, kernel in enumerate(kernels):
        line = result.movedim(axis, -1)
        high = line.amax(dim=-1, keepdim=True).clamp_min(-1e300)
        summed = torch.matmul((line - high).exp(), kernel)
        result = (summed.clamp_min_(least).log_() + high).movedim(-1, axis)
    return result


def wasserstein_barycentre(
    densities: Sequence[Tensor],
    spacing: Sequence[float],
    blur: float,
    iterations: int = 30,
    scaling: float = 0.8,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, float]:
    """Barycentre of maps under squared distance, with equal weights.

    The blur starts at half the grid's extent and shrinks step by step, so that distant mass is
    moved first. Memory is about ten volumes in float64 and one per map.

    Args:
        densities: ``(*shape)`` each, >= 0, with mass above 0.
        spacing: size of a voxel along each axis, mm.
        blur: standard deviation of the entropic blur, mm; details below it aren't transported.
        iterations: at that blur.
        scaling: factor by which the blur shrinks in each step before.
        progress: called after each iteration with its number and the total.

    Returns:
        The barycentre, float64 ``(*shape)``, with the mean mass of the maps; and the share of mass
        that the last iteration moved.

    Raises:
        OutOfReachError: the blur is too small for the distance between the maps.
    """
    shape, device = densities[0].shape, densities[0].device
    masses = torch.stack([one.double().sum() for one in densities])
    if not bool((masses > 0).all()):
        raise ValueError("a map without mass has no barycentre with others")
    logs = [(one.double() / mass).log() for one, mass in zip(densities, masses, strict=True)]
    extent = max(n * step for n, step in zip(shape, spacing, strict=True))
    blurs = [blur] * iterations
    sigma = blur / scaling
    while sigma < extent / 2:
        blurs.insert(0, sigma)
        sigma /= scaling

    # Potentials: one per map on the barycentre's side, and one that removes the kernel's blur.
    towards = [torch.zeros(shape, dtype=torch.float64, device=device) for _ in logs]
    debias = torch.zeros(shape, dtype=torch.float64, device=device)
    result = previous = torch.zeros(shape, dtype=torch.float64, device=device)
    for number, sigma in enumerate(blurs):
        kernels = _kernels(shape, spacing, sigma, device)
        mean = torch.zeros(shape, dtype=torch.float64, device=device)
        sources = list(towards)
        for i, log_density in enumerate(logs):
            away = log_density - log_gaussian(towards[i], kernels)
            towards[i] = log_gaussian(away, kernels)
            mean += towards[i] / len(logs)
        result = debias + mean
        if number + 1 == len(blurs):
            _check_reach(logs, sources, kernels, result)
        for i, reached in enumerate(towards):
            towards[i] = result - reached
        debias = 0.5 * (debias + result - log_gaussian(debias, kernels))
        density = result.exp()
        density /= density.sum()
        moved = float((density - previous).abs().sum() / 2)
        previous = density
        following = blurs[number + 1] if number + 1 < len(blurs) else sigma
        if following != sigma:
            # Potentials are in units of the squared blur.
            ratio = (sigma / following) ** 2
            towards = [one * ratio for one in towards]
            debias = debias * ratio
        if progress is not None:
            progress(number + 1, len(blurs))
    return previous * masses.mean(), moved


def _check_reach(
    logs: Sequence[Tensor], towards: Sequence[Tensor], kernels: Sequence[Tensor], result: Tensor
) -> None:
    """Check that every map reaches the barycentre's mass, without the lower limit of the sum."""
    mass = result > result.max() + math.log(_MASS)
    for log_density, potential in zip(logs, towards, strict=True):
        reached = log_gaussian(log_density - log_gaussian(potential, kernels), kernels, least=0)
        if bool((reached[mass] == -torch.inf).any()):
            raise OutOfReachError("the maps' mass is too many blurs apart")


def _kernels(
    shape: Sequence[int], spacing: Sequence[float], sigma: float, device: torch.device
) -> list[Tensor]:
    kernels = []
    for n, step in zip(shape, spacing, strict=True):
        at = torch.arange(n, dtype=torch.float64, device=device) * (step / sigma)
        kernels.append((-0.5 * (at[:, None] - at) ** 2).exp())
    return kernels
