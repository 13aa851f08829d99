"""Potentials of unbalanced, entropy-regularised transport, from coarse to fine.

The symmetric Sinkhorn iterations with a decreasing temperature of J. Feydy, Geometric data
analysis, beyond convolutions (thesis, 2020), algorithms 3.5 and 3.6, for measures that equal their
mirror image: only the potentials of the N and M given fibres are solved for, and one pass over
their plan gives the sums of both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.transport.clusters import Clusters, flipped
from scripts.transport.sums import Columns, PlanSums, Rows, Step

__all__ = [
    "Annealing",
    "Fine",
    "Potentials",
    "class_masses",
    "diameter",
    "from_centres",
    "passes",
    "solve",
    "temperatures",
]

_LOOSE = 2.0
"""Fibres farther from their centre than this many scales of their side form a separate group."""


@dataclass(frozen=True)
class Annealing:
    """Regularisation and schedule of the transport.

    Attributes:
        blur: root of the temperature at the end, mm.
        reach: root of the strength of the marginal constraints, mm.
        scaling: ratio of the roots of successive temperatures, in (0, 1).
    """

    blur: float
    reach: float
    scaling: float

    @property
    def rho(self) -> float:
        return self.reach**2

    def damping(self, eps: float) -> float:
        """lambda = 1 / (1 + eps / rho)."""
        return 1 / (1 + eps / self.rho)


@dataclass(frozen=True)
class Potentials:
    """Dual potentials in mm^2, ``f`` of the subject's fibres and ``g`` of the atlas's."""

    f: Tensor
    g: Tensor


def diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around both sets and their mirror images."""
    both = torch.stack([x.amin(0), flipped(x).amin(0), y.amin(0), flipped(y).amin(0)]).amin(0)
    top = torch.stack([x.amax(0), flipped(x).amax(0), y.amax(0), flipped(y).amax(0)]).amax(0)
    return float((top - both).norm())


def temperatures(size: float, blur: float, scaling: float) -> list[float]:
    """Decreasing temperatures, mm^2: twice size^2, then times ``scaling^2`` down to blur^2."""
    steps = max(0, math.ceil(math.log(size / blur) / -math.log(scaling))) if size > 0 else 0
    return [size**2, *((size * scaling**step) ** 2 for step in range(steps)), blur**2]


class Fine:
    """The two sets of fibres in the order and groups that passes over their plan need.

    Args:
        x, y: ``(N, D)`` and ``(M, D)``.
        of_x, of_y: their clusters; None: one level, nothing is left out.
        threads: see `PlanSums`.
    """

    def __init__(
        self, x: Tensor, y: Tensor, of_x: Clusters | None, of_y: Clusters | None, threads: int
    ) -> None:
        n, m = len(x), len(y)
        a, b = x.new_full((n,), 1 / n), x.new_full((m,), 1 / m)
        if of_x is None or of_y is None:
            self.x_order = torch.arange(n, device=x.device)
            self.y_order = torch.arange(m, device=x.device)
            rows, columns = Rows(x, a, [0, n]), Columns(y, b)
        else:
            x = torch.where(of_x.turned[:, None], flipped(x), x)
            y = torch.where(of_y.turned[:, None], flipped(y), y)
            far = (x - of_x.centres[of_x.labels]).norm(dim=1)
            # Fibres far from everything need many blocks: they form a separate group.
            group = of_x.labels + len(of_x.centres) * (far > _LOOSE * of_x.scale)
            self.x_order = torch.argsort(group, stable=True)
            self.y_order = torch.argsort(of_y.labels, stable=True)
            _, sizes = torch.unique(group, return_counts=True)
            rows = Rows(x[self.x_order], a, _starts(_merged(sizes.tolist())))
            distances = (y - of_y.centres[of_y.labels]).norm(dim=1)[self.y_order]
            sizes = torch.bincount(of_y.labels)
            radii = torch.segment_reduce(distances, "max", lengths=sizes)
            columns = Columns(y[self.y_order], b, _starts(sizes.tolist()), of_y.centres, radii)
        self.sums = PlanSums(rows, columns, threads)

    def sorted(self, potentials: Potentials) -> Potentials:
        """From the given order to that of the passes."""
        return Potentials(potentials.f[self.x_order], potentials.g[self.y_order])

    def given(self, potentials: Potentials) -> Potentials:
        """Back to the given order."""
        f, g = torch.empty_like(potentials.f), torch.empty_like(potentials.g)
        f[self.x_order], g[self.y_order] = potentials.f, potentials.g
        return Potentials(f, g)


def _starts(sizes: list[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts


def _merged(sizes: list[int], least: int = 16) -> list[int]:
    """Merge neighbouring groups until each has ``least`` members: a call has a cost, too."""
    merged: list[int] = []
    open_ = 0
    for size in sizes:
        open_ += size
        if open_ >= least:
            merged.append(open_)
            open_ = 0
    return [*merged, open_] if open_ else merged


def solve(
    x: Tensor,
    y: Tensor,
    annealing: Annealing,
    fine: Fine,
    of_x: Clusters | None = None,
    of_y: Clusters | None = None,
    step: Step | None = None,
) -> Potentials:
    """Potentials of the transport between two sets of fibres with uniform weights.

    With clusters, the iterations first run between the clusters' centres until the temperature is
    below the clusters' size; the resulting potentials initialise those of the fibres.

    Args:
        x, y: ``(N, D)`` and ``(M, D)``.
        annealing: temperatures and reach.
        fine: made from the same fibres and clusters.
        of_x, of_y: clusters of both sides, or None.
        step: called with progress; a full pass over the fibres counts 1.

    Returns:
        Potentials in the order of ``fine``, like those of GeomLoss' `SamplesLoss` for the measures
        with their mirror images.
    """
    eps_list = temperatures(diameter(x, y), annealing.blur, annealing.scaling)
    if of_x is None or of_y is None:
        return _anneal(fine.sums, None, eps_list, annealing, step)
    scale = max(of_x.scale, of_y.scale)
    jump = next((i + 1 for i, eps in enumerate(eps_list[2:]) if scale**2 > eps), len(eps_list) - 1)
    coarse = PlanSums(
        Rows(of_x.centres, _shares(of_x), [0, len(of_x.centres)]),
        Columns(of_y.centres, _shares(of_y)),
        fine.sums.threads,
    )
    potentials = _anneal(coarse, None, eps_list[: jump + 1], annealing, None, last=False)
    eps = eps_list[jump]
    f = from_centres(x, of_y, potentials.g, eps, annealing)
    g = from_centres(y, of_x, potentials.f, eps, annealing)
    start = fine.sorted(Potentials(f, g))
    return _anneal(fine.sums, start, eps_list[jump + 1 :], annealing, step)


def from_centres(
    fibres: Tensor, others: Clusters, of_centres: Tensor, eps: float, annealing: Annealing
) -> Tensor:
    """Potentials of fibres from those of the other side's cluster centres.

    The soft minimum that defines a potential is valid everywhere, not only at the centres.

    Args:
        fibres: ``(N, D)``.
        others: clusters of the other side.
        of_centres: ``(K,)``, their potentials.
        eps: temperature.
        annealing: for the damping.

    Returns:
        ``(N,)``.
    """
    rows = Rows(fibres, fibres.new_ones(1), [0, len(fibres)])
    sums = PlanSums(rows, Columns(others.centres, _shares(others)))
    return annealing.damping(eps) * sums.row_minima(of_centres, eps)


def passes(x: Tensor, y: Tensor, annealing: Annealing, scale: float | None) -> int:
    """Number of passes over the fibres in `solve`, for a progress bar."""
    eps_list = temperatures(diameter(x, y), annealing.blur, annealing.scaling)
    if scale is None:
        return len(eps_list) + 2
    jump = next((i + 1 for i, eps in enumerate(eps_list[2:]) if scale**2 > eps), len(eps_list) - 1)
    return len(eps_list) - jump


def _shares(clusters: Clusters) -> Tensor:
    sizes = torch.bincount(clusters.labels).to(clusters.centres)
    return sizes / sizes.sum()


def _anneal(
    sums: PlanSums,
    start: Potentials | None,
    eps_list: list[float],
    annealing: Annealing,
    step: Step | None,
    last: bool = True,
) -> Potentials:
    """Averaged simultaneous updates at decreasing temperatures, and a last one without
    averaging."""
    if start is None:
        zero_f, zero_g = torch.zeros_like(sums.half_x), torch.zeros_like(sums.half_y)
        damping = annealing.damping(eps_list[0])
        f, g = sums.soft_minima(zero_f, zero_g, eps_list[0], step)
        f, g = damping * f, damping * g
    else:
        f, g = start.f, start.g
    for eps in eps_list:
        damping = annealing.damping(eps)
        new_f, new_g = sums.soft_minima(f, g, eps, step)
        f, g = (f + damping * new_f) / 2, (g + damping * new_g) / 2
    if last:
        eps = annealing.blur**2
        new_f, new_g = sums.soft_minima(f, g, eps, step)
        f, g = annealing.damping(eps) * new_f, annealing.damping(eps) * new_g
    return Potentials(f, g)


def class_masses(
    fine: Fine,
    potentials: Potentials,
    classes: Tensor,
    annealing: Annealing,
    step: Step | None = None,
) -> Tensor:
    """Mass of each subject fibre by class, from the atlas's potentials.

    The subject's potentials are recomputed, F = -lambda eps log sum_j b_j exp((G_j - C_ij) / eps),
    in the pass that also sums the plan by class. Fibres without any match therefore get the correct
    small mass, however their potential was computed.

    Args:
        fine: the two sets.
        potentials: in its order; ``f`` keeps numbers in range, and decides what may be left out.
        classes: ``(M,)`` int64 in the order given to ``fine``, 0 to C - 1.
        annealing: temperature and reach.
        step: called with progress.

    Returns:
        ``(N, C)``, in the order given to ``fine``.
    """
    eps = annealing.blur**2
    sums = fine.sums.class_sums(potentials.f, potentials.g, eps, classes[fine.y_order], step)
    # exp((F - f) / eps) times the sums, and F by its definition: only the powers remain.
    total = sums.sum(1, keepdim=True)
    damping = annealing.damping(eps)
    scale = total.pow(-damping) * (potentials.f * (damping - 1) / eps).exp()[:, None]
    masses = torch.empty_like(sums)
    # Out of float32's range: so far from everything that its mass is 0 as well.
    masses[fine.x_order] = torch.where(total > 0, sums * scale, 0)
    return masses
