"""GeomLoss' multiscale solver, where KeOps works."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from scripts.errors import TrainingError
from scripts.transport.clusters import Clusters, flipped
from scripts.transport.sinkhorn import Annealing, Potentials, from_centres

__all__ = ["geomloss_works", "solve_with_geomloss"]

logger = logging.getLogger(__name__)


@cache
def geomloss_works(device: str) -> bool:
    """Whether geomloss and pykeops are installed and KeOps can compile; one warning if not.

    Importing pykeops succeeds without a compiler; only its first formula fails.
    """
    try:
        import geomloss  # noqa: F401
        from pykeops.torch import LazyTensor

        x = torch.rand(4, 1, 3, device=device)
        y = torch.rand(1, 4, 3, device=device)
        (LazyTensor(x) - LazyTensor(y)).square().sum(-1).logsumexp(1)
    except Exception as error:  # KeOps raises whatever its compiler raises
        reason = " ".join(str(error).split()).strip() or type(error).__name__
        logger.warning(
            "label_transfer.solver = 'geomloss' doesn't work here (%s); using the bundle's "
            "multiscale solver instead. It needs: pip install geomloss pykeops, and a "
            "C++ compiler",
            reason[:200],
        )
        return False
    return True


def solve_with_geomloss(
    x: Tensor, y: Tensor, annealing: Annealing, of_x: Clusters, of_y: Clusters
) -> Potentials:
    """Potentials from `geomloss.SamplesLoss`, multiscale, over fibres and their reverses.

    Its truncation leaves outdated potentials, of any size or NaN, on fibres without a match. Those
    of the subject are therefore estimated again from the atlas's; `class_masses` makes them exact.

    Args:
        x, y: ``(N, D)`` and ``(M, D)``.
        annealing: temperatures and reach.
        of_x, of_y: clusters of both.

    Raises:
        TrainingError: GeomLoss' potentials of the atlas aren't finite.
    """
    from geomloss import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=annealing.blur,
        reach=annealing.reach,
        scaling=annealing.scaling,
        cluster_scale=max(of_x.scale, of_y.scale),
        debias=False,
        potentials=True,
        backend="multiscale",
    )
    sides = []
    for fibres, clusters in ((x, of_x), (y, of_y)):
        both = torch.cat([fibres, flipped(fibres)])
        turned = torch.cat([clusters.turned, ~clusters.turned])
        labels = clusters.labels.repeat(2) * 2 + turned
        # GeomLoss makes NaN of a number that no fibre has.
        _, labels = torch.unique(labels, return_inverse=True)
        weights = both.new_full((len(both),), 1 / len(both))
        sides += [labels.int(), weights, both]
    _, g = loss(*sides)
    g = g.detach().reshape(-1)[: len(y)]
    if not torch.isfinite(g).all():
        raise TrainingError(
            "label_transfer.solver = 'geomloss': gave potentials that are not finite; use "
            "multiscale"
        )
    sizes = torch.bincount(of_y.labels)
    means = torch.zeros(len(sizes), device=g.device).index_add_(0, of_y.labels, g) / sizes
    return Potentials(from_centres(x, of_y, means, annealing.blur**2, annealing), g)
