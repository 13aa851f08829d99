"""Continues a field into a region where nothing is known, from what surrounds it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["extended_field"]

_SWEEPS = 8  # relaxations for each voxel of the region's half width, which is how far they reach


def extended_field(field: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Replace the unknown part of a field by the harmonic function with the values around it.

    The result is the smoothest continuation: it minimises the squared gradient, which is what
    `SmoothnessLoss` measures. It has no extremum inside the region. It is found from coarse to
    fine, by block means and then by averages over neighbours.

    Args:
        field: ``(B, d, *shape)``; values where it isn't known have no influence.
        known: ``(B, 1, *shape)`` bool.

    Returns:
        ``(B, d, *shape)``; known values stay exactly as they are. 0 if nothing is known.
    """
    if bool(known.all()):
        return field
    field = field.where(known, 0)
    if not bool(known.flatten(1).any()):
        return field
    start = _from_coarse(field, known)
    box = _box_around(~known)
    inner, fixed = start[box].clone(), known[box]
    reach = max(inner.shape[2:])
    for _ in range(_SWEEPS * reach):
        inner = torch.where(fixed, inner, _mean_of_neighbours(inner))
    result = start.clone()
    result[box] = inner
    return torch.where(known, field, result)


def _from_coarse(field: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """A first guess: block means of known voxels, at the finest resolution that has any."""
    pool = F.avg_pool3d if field.dim() == 5 else F.avg_pool2d
    levels = [(field, known.to(field))]
    while not bool((levels[-1][1] > 0).all()) and max(levels[-1][0].shape[2:]) > 1:
        total, weight = levels[-1]
        block = [min(2, n) for n in total.shape[2:]]
        levels.append(
            (
                pool(total, block, ceil_mode=True, count_include_pad=False),
                pool(weight, block, ceil_mode=True, count_include_pad=False),
            )
        )
    guess: torch.Tensor | None = None
    for total, weight in reversed(levels):
        here = total / weight.where(weight > 0, 1.0)
        if guess is not None:
            coarse = F.interpolate(guess, scale_factor=2.0, mode="nearest")
            for axis, n in enumerate(total.shape[2:], start=2):
                coarse = coarse.narrow(axis, 0, n)
            here = torch.where(weight > 0, here, coarse)
        guess = here
    assert guess is not None
    return guess


def _mean_of_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Mean of the two neighbours along each axis; a border voxel counts as its outer neighbour."""
    d = x.dim() - 2
    padded = F.pad(x, [1] * (2 * d), mode="replicate")
    total = torch.zeros_like(x)
    for axis in range(2, 2 + d):
        for start in (0, 2):
            place = [slice(None), slice(None), *[slice(1, -1)] * d]
            place[axis] = slice(start, start + x.shape[axis])
            total += padded[tuple(place)]
    return total / (2 * d)


def _box_around(mask: torch.Tensor) -> tuple[slice, ...]:
    """The smallest box of all entries of a batch that contains a region, one voxel larger."""
    d = mask.dim() - 2
    box = [slice(None), slice(None)]
    for axis in range(2, 2 + d):
        others = [other for other in range(mask.dim()) if other != axis]
        filled = mask.amax(dim=others)
        (places,) = filled.nonzero(as_tuple=True)
        box.append(slice(max(0, int(places[0]) - 1), int(places[-1]) + 2))
    return tuple(box)
