"""K-means for streamlines, which have no direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Clusters", "cluster_classes", "cluster_fibres", "flipped"]

_SAMPLE = 25
"""Fibres per cluster to which the centres are fitted."""
_ROUNDS = 8
_BLOCK = 2048


@dataclass(frozen=True)
class Clusters:
    """A partition of fibres around centres; each fibre gets the direction of its centre.

    Attributes:
        centres: ``(K, D)``; none is empty.
        labels: ``(N,)`` int64, cluster of each fibre.
        turned: ``(N,)`` bool, fibres that are nearer to their centre when reversed.
        scale: root mean square distance of the fibres to their centres.
    """

    centres: Tensor
    labels: Tensor
    turned: Tensor
    scale: float


def flipped(vectors: Tensor) -> Tensor:
    """``(N, 3 * n_points)``: the same fibres in reverse order."""
    return vectors.reshape(len(vectors), -1, 3).flip(1).reshape(vectors.shape)


def cluster_fibres(fibres: Tensor, count: int, seed: int) -> Clusters:
    """K-means with the distance to a fibre or its reverse, whichever is smaller.

    The centres are fitted to a sample of 25 fibres each, and every fibre is assigned at the end, so
    the cost is that of one assignment. Empty clusters are dropped.

    Args:
        fibres: ``(N, D)``, N at least 1.
        count: number of clusters; at most N are made.
        seed: of the sample and the first centres.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(fibres), generator=generator).to(fibres.device)
    count = max(1, min(count, len(fibres)))
    centres = fibres[order[:count]]
    sample = fibres[order[: _SAMPLE * count]]
    for _ in range(_ROUNDS if count < len(fibres) else 0):
        labels, turned, _ = _assign(sample, centres)
        centres = _means(sample, labels, turned, len(centres))
    labels, turned, squares = _assign(fibres, centres)
    used, labels = torch.unique(labels, return_inverse=True)
    return Clusters(centres[used], labels, turned, float(squares.mean()) ** 0.5)


def cluster_classes(fibres: Tensor, classes: Tensor, count: int, seed: int) -> Clusters:
    """`cluster_fibres` within each class; every class gets its share of ``count``, at least one.

    Args:
        fibres: ``(M, D)``.
        classes: ``(M,)`` int64, 0 to C - 1.
        count: total number of clusters.
        seed: of the first class; incremented for the others.
    """
    labels = torch.empty_like(classes)
    turned = torch.empty(len(classes), dtype=torch.bool, device=fibres.device)
    centres: list[Tensor] = []
    squares, made = 0.0, 0
    for index, one in enumerate(torch.unique(classes).tolist()):
        (members,) = torch.nonzero(classes == one, as_tuple=True)
        share = max(1, round(count * len(members) / len(fibres)))
        part = cluster_fibres(fibres[members], share, seed + index)
        labels[members] = part.labels + made
        turned[members] = part.turned
        centres.append(part.centres)
        squares += part.scale**2 * len(members)
        made += len(part.centres)
    return Clusters(torch.cat(centres), labels, turned, (squares / len(fibres)) ** 0.5)


def _assign(fibres: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest centre of each fibre, whether to reverse the fibre, squared distance."""
    both = torch.cat([centres, flipped(centres)])
    half = both.square().sum(1) / 2
    nearest, closeness = [], []
    for part in fibres.split(_BLOCK):
        best = torch.addmm(-half, part, both.T).max(1)
        closeness.append(best.values)
        nearest.append(best.indices)
    nearest_cell = torch.cat(nearest)
    squares = (fibres.square().sum(1) - 2 * torch.cat(closeness)).clamp_min_(0)
    return nearest_cell % len(centres), nearest_cell >= len(centres), squares


def _means(fibres: Tensor, labels: Tensor, turned: Tensor, count: int) -> Tensor:
    alike = torch.where(turned[:, None], flipped(fibres), fibres)
    # Sums in a fixed order: index_add_ on a GPU adds in the order of its threads.
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels, minlength=count)
    sums = torch.segment_reduce(alike[order].contiguous(), "sum", lengths=sizes, axis=0)
    filled = sizes > 0
    return sums[filled] / sizes[filled, None]
