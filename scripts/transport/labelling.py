"""Labels of a subject's fibres from those of an atlas: from vectors to classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scripts.settings.label_transfer import LabelTransferConfig
from scripts.transport.clusters import cluster_classes, cluster_fibres
from scripts.transport.geomloss_solver import geomloss_works, solve_with_geomloss
from scripts.transport.sinkhorn import Annealing, Fine, class_masses, passes, solve

__all__ = ["OUTLIER", "Labelling", "label_fibres"]

logger = logging.getLogger(__name__)

OUTLIER = -1
_MULTISCALE_FROM = 2_000_000  # pairs of fibres

Progress = Callable[[float], Callable[[float], None]]
"""Called with the total work; returns a function to call with each finished share."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """Result of the transport for each fibre of the subject.

    Attributes:
        classes: ``(N,)`` int64, `OUTLIER` below the threshold.
        largest: ``(N,)`` float32, mass of the class with the largest mass.
        masses: ``(C,)`` float64, the share of the subject's mass that each class got.
        solver: the solver that was used.
    """

    classes: np.ndarray
    largest: np.ndarray
    masses: np.ndarray
    solver: dict[str, Any]


def label_fibres(
    subject: np.ndarray,
    atlas: np.ndarray,
    classes: np.ndarray,
    settings: LabelTransferConfig,
    progress: Progress | None = None,
) -> Labelling:
    """Propagate classes from the fibres of an atlas to those of a subject.

    Args:
        subject: ``(N, D)`` vectors, see `fibre_features`.
        atlas: ``(M, D)``, M at least 1.
        classes: ``(M,)``, 0 to C - 1.
        settings: of the transport.
        progress: for a progress bar.

    Returns:
        Classes and masses; N = 0 gives empty ones.
    """
    count = int(classes.max()) + 1
    if not len(subject):
        empty = np.zeros(0, np.float32)
        return Labelling(empty.astype(np.int64), empty, np.zeros(count), {"name": "none"})
    device = torch.device(settings.device)
    x, y = (torch.as_tensor(side, device=device) for side in (subject, atlas))
    of_atlas = torch.as_tensor(classes, device=device)
    annealing = Annealing(settings.blur, settings.reach, settings.scaling)
    threads = settings.threads or torch.get_num_threads()

    solver = settings.solver
    if solver == "geomloss" and not geomloss_works(str(device)):
        solver = "multiscale"
    if solver == "auto":
        solver = "multiscale" if len(x) * len(y) >= _MULTISCALE_FROM else "dense"
    of_x = of_y = None
    if solver != "dense":
        wanted = (settings.n_clusters or max(1, min(1000, len(side) // 10)) for side in (x, y))
        of_x = cluster_fibres(x, next(wanted), settings.seed)
        of_y = cluster_classes(y, of_atlas, next(wanted), settings.seed)
    fine = Fine(x, y, of_x, of_y, threads)
    scale = None if of_x is None or of_y is None else max(of_x.scale, of_y.scale)
    built_in = solver != "geomloss"
    step = progress((passes(x, y, annealing, scale) if built_in else 0) + 1) if progress else None
    if built_in:
        potentials = solve(x, y, annealing, fine, of_x, of_y, step)
    else:
        assert of_x is not None and of_y is not None
        potentials = fine.sorted(solve_with_geomloss(x, y, annealing, of_x, of_y))
    masses = class_masses(fine, potentials, of_atlas, annealing, step)
    largest, which = masses.max(1)
    labels = torch.where(largest >= settings.outlier_threshold, which, OUTLIER)
    described: dict[str, Any] = {
        "name": solver,
        "pairs_evaluated": fine.sums.evaluated,
        "pairs": 2 * len(x) * len(y),
    }
    if of_x is not None and of_y is not None:
        described["clusters"] = [len(of_x.centres), len(of_y.centres)]
        described["cluster_scale_mm"] = scale
    return Labelling(
        labels.cpu().numpy(),
        largest.float().cpu().numpy(),
        masses.double().mean(0).cpu().numpy(),
        described,
    )
