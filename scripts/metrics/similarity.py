"""Similarity of a subject's density and an atlas on one grid: four groups of measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, center_of_mass, distance_transform_edt
from scipy.stats import spearmanr

from scripts.metrics.correlation import pearson
from scripts.metrics.overlap import dice

__all__ = [
    "correlation_metrics",
    "distance_metrics",
    "distribution_metrics",
    "overlap_metrics",
    "present",
]

FloatArray = NDArray[np.floating]
Mask = NDArray[np.bool_]
Numbers = dict[str, float | None]


def present(density: FloatArray, threshold: float, mode: str = "fraction") -> Mask:
    """Where a density is above a threshold (strictly).

    Args:
        density: >= 0.
        threshold: a fraction of the density's maximum, or a density.
        mode: ``fraction`` or ``absolute``.
    """
    level = threshold * float(density.max(initial=0)) if mode == "fraction" else threshold
    return np.asarray(density > level)


def overlap_metrics(subject: Mask, atlas: Mask) -> Numbers:
    """Overlap of two masks.

    Returns:
        ``dice`` and ``jaccard`` (1.0 if both are empty); ``volume_ratio`` = subject / atlas,
        ``sensitivity`` = share of the subject that the atlas covers, ``precision`` = share of the
        atlas that the subject covers; None where that would divide by 0.
    """
    both, either = int((subject & atlas).sum()), int((subject | atlas).sum())
    a, b = int(subject.sum()), int(atlas.sum())
    return {
        "dice": dice(subject, atlas),
        "jaccard": both / either if either else 1.0,
        "volume_ratio": a / b if b else None,
        "sensitivity": both / a if a else None,
        "precision": both / b if b else None,
    }


def correlation_metrics(subject: FloatArray, atlas: FloatArray, where: Mask) -> Numbers:
    """Pearson, Spearman and cosine of the densities in a mask; None where undefined."""
    x, y = subject[where].astype(np.float64), atlas[where].astype(np.float64)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    varies = x.size > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return {
        "pearson": pearson(x, y),
        "spearman": float(spearmanr(x, y).statistic) if varies else None,
        "cosine": float(x @ y) / lengths if lengths > 0 else None,
    }


def distance_metrics(subject: Mask, atlas: Mask, spacing: Sequence[float]) -> Numbers:
    """Distances in mm between two masks; None where one is empty.

    A mask's surface is its voxels with a face neighbour outside it, as in MONAI.

    Returns:
        ``hd95``: the larger of the two directions' 95th percentiles of the surface distances;
        ``mean_surface``: mean of the distances of both directions together;
        ``centroid``: between the centres of mass.
    """
    if not (subject.any() and atlas.any()):
        return {"hd95": None, "mean_surface": None, "centroid": None}
    edges = [mask & ~binary_erosion(mask) for mask in (subject, atlas)]
    there, back = (
        distance_transform_edt(~other, sampling=spacing)[edge]
        for edge, other in ((edges[0], edges[1]), (edges[1], edges[0]))
    )
    apart = np.subtract(center_of_mass(subject), center_of_mass(atlas)) * np.asarray(spacing)
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "mean_surface": float(np.concatenate([there, back]).mean()),
        "centroid": float(np.linalg.norm(apart)),
    }


def distribution_metrics(
    subject: FloatArray, atlas: FloatArray, where: Mask, bins: int = 64
) -> Numbers:
    """Similarity of the densities' distributions in a mask, each density divided by its maximum.

    Returns:
        ``nmi``: (H(X) + H(Y)) / H(X, Y) of the joint histogram, from 1 (independent) to 2
        (Studholme et al. 1999); ``symmetric_kl``: KL(P|Q) + KL(Q|P) in nats, of histograms with
        1e-10 added to every bin; ``bhattacharyya``: the coefficient sum sqrt(p q), 1 for equal
        histograms.
        None for an empty mask; nmi is 2 where both are constant.
    """
    if not where.any():
        return {"nmi": None, "symmetric_kl": None, "bhattacharyya": None}
    x, y = (
        m[where].astype(np.float64) / (float(m.max(initial=0)) or 1.0) for m in (subject, atlas)
    )
    joint = np.histogram2d(x, y, bins=bins, range=[[0, 1], [0, 1]])[0] / x.size
    p, q = joint.sum(axis=1), joint.sum(axis=0)
    together = _entropy(joint)
    smooth_p, smooth_q = ((h + 1e-10) / (h + 1e-10).sum() for h in (p, q))
    return {
        "nmi": (_entropy(p) + _entropy(q)) / together if together > 0 else 2.0,
        "symmetric_kl": float(((smooth_p - smooth_q) * np.log(smooth_p / smooth_q)).sum()),
        "bhattacharyya": float(np.sqrt(p * q).sum()),
    }


def _entropy(shares: FloatArray) -> float:
    filled = shares[shares > 0]
    return -math.fsum((filled * np.log(filled)).tolist())
