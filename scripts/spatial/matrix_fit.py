"""From matched keypoints to a matrix: weighted least squares in closed form.

Points are ``(B, K, d)`` in mm, weights ``(B, K)`` >= 0, matrices ``(B, d + 1, d + 1)`` homogeneous.
Everything is computed in float64 and is differentiable. Both directions are fitted and averaged, so
that swapping the two sets gives exactly the inverse matrix. (Except for rigid motion with
anisotropic scales: the inverse of such a matrix scales last and isn't in the transform model.)

Wang et al., KeyMorph, Medical Image Analysis 2023; Hoffmann et al., Anatomy-aware and
acquisition-agnostic joint registration (SynthMorph), Imaging Neuroscience 2024.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from scripts.spatial.affine_parameters import FAMILIES

__all__ = ["LEVELS", "KeypointFit", "effective_points", "fit_matrix", "nearest_rotation"]

logger = logging.getLogger(__name__)

LEVELS = ("identity", "translation", *FAMILIES)
"""What points can determine, in increasing order."""

_FLAT = 1e-6  # ratio of variances below which a point cloud is flat: 1/1000 of its length
_ALTERNATIONS = 20  # of rotation and scales; for noise-free points the first one is exact


@dataclass(frozen=True, eq=False)
class KeypointFit:
    """A matrix per pair, and what the points could determine.

    Attributes:
        matrix: ``(B, d + 1, d + 1)`` float64, maps ``source`` to ``target``.
        level: index into `LEVELS` of the model that was fitted ``(B,)`` int64, never above the
            requested one.
        effective: effective number of points ``(B,)``.
    """

    matrix: torch.Tensor
    level: torch.Tensor
    effective: torch.Tensor


class _NearestRotation(torch.autograd.Function):
    """``R`` that maximises trace(R^T H), with a gradient that is stable for equal singular values.

    With H = U S V^T and D = diag(1, ..., det(U V^T)), R = U D V^T. From H = R P, P symmetric,
    U^T dR V D is antisymmetric with entries (W_ij - W_ji) / (s_i + s_j), W = U^T dH V D and s the
    diagonal of S D. Differentiating the decomposition itself would divide by s_i - s_j instead.
    """

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        sign = torch.ones_like(s)
        sign[..., -1] = torch.linalg.det(u @ vh).sign()
        v = (sign.unsqueeze(-1) * vh).mT
        ctx.save_for_backward(u, s * sign, v)
        return u @ v.mT

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        u, s, v = ctx.saved_tensors
        inner = u.mT @ grads[0] @ v
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        # The sum is zero only where the rotation isn't determined; the gradient is bounded there.
        least = 1e-9 * s[..., :1].abs().unsqueeze(-1) + torch.finfo(s.dtype).tiny
        return u @ ((inner - inner.mT) / torch.maximum(sums, least)) @ v.mT


def nearest_rotation(matrix: torch.Tensor) -> torch.Tensor:
    """The rotation ``(..., d, d)`` (never a reflection) nearest to ``matrix``."""
    return _NearestRotation.apply(matrix)


def effective_points(weights: torch.Tensor) -> torch.Tensor:
    """Effective number of weights ``(..., K)``: (sum w)^2 / sum w^2; 0 if all are 0."""
    total, squares = weights.sum(-1).square(), weights.square().sum(-1)
    return torch.where(squares > 0, total / torch.where(squares > 0, squares, 1.0), 0.0)


def fit_matrix(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    family: str = "affine",
    ridge: float = 1e-6,
) -> KeypointFit:
    """Least-squares matrix of a transform model that maps ``source`` to ``target``.

    =====================  ==========================================================
    ``affine``             both directions' normal equations, averaged geometrically
    ``rigid_anisotropic``  R diag(s): rotation and symmetric scales in alternation
    ``rigid_isotropic``    s R: Procrustes, s^2 the ratio of the spreads
    ``rigid``              R: Procrustes by the singular value decomposition
    =====================  ==========================================================

    Every entry of the batch gets the highest model that its points determine. Affine and
    anisotropic matrices need d + 1 effective points that aren't in one plane (2-D: on one line).
    The other models need d points that aren't on one line (2-D: at one position). An affine matrix
    must not mirror. Otherwise the nearest lower model is fitted, which `KeypointFit.level` and a
    log line report.

    Args:
        source: ``(B, K, d)`` mm.
        target: ``(B, K, d)`` mm.
        weights: ``(B, K)`` >= 0; None: all 1.
        family: transform model, one of `LEVELS`.
        ridge: regularisation of an affine matrix towards the identity, relative to the points'
            variance: directions that the points determine poorly stay as they are.

    Raises:
        ValueError: the shapes don't match, or the transform model is unknown.
    """
    if source.shape != target.shape or source.dim() != 3:
        raise ValueError(
            f"points must be two sets (B, K, d), got {tuple(source.shape)} and "
            f"{tuple(target.shape)}"
        )
    if family not in LEVELS:
        raise ValueError(f"family must be one of {', '.join(LEVELS)}, got {family!r}")
    p, q = source.double(), target.double()
    w = torch.ones_like(p[..., 0]) if weights is None else weights.double().clamp_min(0)
    if w.shape != p.shape[:2]:
        raise ValueError(f"weights must have shape {tuple(p.shape[:2])}, got {tuple(w.shape)}")
    effective = effective_points(w)
    with torch.no_grad():
        level = _determined(p, q, w, effective).clamp_max(LEVELS.index(family))
        level -= _mirrored(p, q, w, level).long()
    matrix = torch.eye(p.shape[-1] + 1, dtype=p.dtype, device=p.device).repeat(len(p), 1, 1)
    parts = []
    for one in level.unique().tolist():
        (here,) = torch.nonzero(level == one, as_tuple=True)
        if one:
            fitted = _fit(p[here], q[here], w[here], LEVELS[one], ridge)
            parts.append((here, fitted))
        if LEVELS[one] != family:
            # In training every step would log this; there the loss shows it.
            logger.log(
                logging.DEBUG if p.requires_grad or w.requires_grad else logging.WARNING,
                "%d of %d keypoint sets can't determine %s (too few points, flat or mirrored; at "
                "least %.1f effective points): fitted %s instead",
                len(here),
                len(p),
                family,
                float(effective[here].detach().min()),
                LEVELS[one],
            )
    for here, fitted in parts:
        matrix = matrix.index_copy(0, here, fitted)
    return KeypointFit(matrix, level, effective)


def _spread(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Weighted sum of outer products ``(B, d, d)``: rows from ``a``, columns from ``b``."""
    return torch.einsum("bk,bki,bkj->bij", w, a, b)


def _centred(
    points: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points minus their weighted mean, the mean ``(B, 1, d)``, weights with sum 1."""
    share = w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    mean = (share.unsqueeze(-1) * points).sum(1, keepdim=True)
    return points - mean, mean, share


def _determined(
    p: torch.Tensor, q: torch.Tensor, w: torch.Tensor, effective: torch.Tensor
) -> torch.Tensor:
    """Highest model that the points determine, index into `LEVELS` ``(B,)``."""
    d = p.shape[-1]
    flattest = p.new_full((len(p),), torch.inf)  # smallest variance over the largest
    thinnest = flattest.clone()  # second largest variance over the largest; in 2-D the largest
    for points in (p, q):
        centred, _, share = _centred(points, w)
        values = torch.linalg.eigvalsh(_spread(centred, centred, share)).clamp_min(0)
        largest = values[:, -1].clamp_min(torch.finfo(values.dtype).tiny)
        # Relative to the distance from the centre: rounding gives a single position a variance.
        floor = 1e-18 * points.square().sum(-1).amax(-1)
        spread = values[:, -1] > floor
        flattest = torch.minimum(flattest, torch.where(spread, values[:, 0] / largest, 0.0))
        second = values[:, 1] / largest if d == 3 else torch.ones_like(largest)
        thinnest = torch.minimum(thinnest, torch.where(spread, second, 0.0))
    some = effective > 0
    # Equal weights sum to their number up to rounding.
    turns = (effective > d - 1e-6) & (thinnest > _FLAT)
    full = (effective > d + 1 - 1e-6) & (flattest > _FLAT)
    level = torch.zeros_like(effective, dtype=torch.long)
    level[some] = LEVELS.index("translation")
    level[some & turns] = LEVELS.index("rigid_isotropic")
    level[some & turns & full] = LEVELS.index("affine")
    return level


def _mirrored(
    p: torch.Tensor, q: torch.Tensor, w: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """Where an affine matrix would be fitted but would mirror ``(B,)``."""
    centred, _, share = _centred(p, w)
    sign = torch.linalg.det(_spread(_centred(q, w)[0], centred, share))
    return (level == LEVELS.index("affine")) & (sign <= 0)


def _fit(
    p: torch.Tensor, q: torch.Tensor, w: torch.Tensor, level: str, ridge: float
) -> torch.Tensor:
    """Homogeneous matrices of one transform model; see `fit_matrix`."""
    d = p.shape[-1]
    p, p_mean, w = _centred(p, w)
    q, q_mean, _ = _centred(q, w)
    if level == "translation":
        linear = torch.eye(d, dtype=p.dtype, device=p.device).expand(len(p), d, d)
    elif level == "affine":
        linear = _affine(p, q, w, ridge)
    elif level == "rigid_anisotropic":
        linear = _anisotropic(p, q, w)
    else:
        linear = nearest_rotation(_spread(q, p, w))
        if level == "rigid_isotropic":
            ratio = (w * q.square().sum(-1)).sum(-1) / (w * p.square().sum(-1)).sum(-1)
            linear = ratio.sqrt().view(-1, 1, 1) * linear
    moved = q_mean.mT - linear @ p_mean.mT
    last = torch.eye(d + 1, dtype=p.dtype, device=p.device)[-1:].expand(len(p), 1, d + 1)
    return torch.cat([torch.cat([linear, moved], dim=2), last], dim=1)


def _affine(p: torch.Tensor, q: torch.Tensor, w: torch.Tensor, ridge: float) -> torch.Tensor:
    """Geometric mean of the forward fit X and the inverted backward fit Y: X (X^-1 Y)^(1/2).

    The ridge acts like points that don't move, the same for both directions. The eigenvalues of
    X^-1 Y are then the inverse squared canonical correlations: real and at least 1, so the root
    always exists.
    """
    pp, qq, qp = _spread(p, p, w), _spread(q, q, w), _spread(q, p, w)
    d = p.shape[-1]
    eye = torch.eye(d, dtype=p.dtype, device=p.device)
    trace = (pp + qq).diagonal(dim1=1, dim2=2).sum(-1) / (2 * d)
    still = ridge * trace.view(-1, 1, 1) * eye
    pp, qq, qp = pp + still, qq + still, qp + still
    forward = torch.linalg.solve(pp, qp, left=False)
    backward = torch.linalg.solve(qq, qp.mT, left=False)  # q to p
    return forward @ _square_root(torch.linalg.inv(backward @ forward))


def _square_root(matrix: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """Principal square root by the product form of Denman and Beavers' iteration.

    Converges for any matrix without eigenvalues on the closed negative axis, finally quadratically
    (Higham, Functions of Matrices, 2008, eq. 6.29).
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    product, root = matrix, matrix
    for _ in range(iterations):
        inverse = torch.linalg.inv(product)
        root = 0.5 * root @ (eye + inverse)
        product = 0.5 * (eye + 0.5 * (product + inverse))
        if bool((product - eye).abs().amax() < 1e-14):
            break
    return root


def _anisotropic(p: torch.Tensor, q: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """R diag(s) by alternation, starting from the scales of the affine fit.

    Given R, the geometric mean of both directions' fits is s_i^2 = spread of (R^T q)_i over the
    spread of p_i; given s, R is the Procrustes solution for the scaled points.
    """
    extent = (w.unsqueeze(-1) * p.square()).sum(1)
    scale = _affine(p, q, w, 1e-6).square().sum(1).sqrt()  # lengths of the columns
    rotation = nearest_rotation(_spread(q, p * scale.unsqueeze(1), w))
    for _ in range(_ALTERNATIONS):
        turned = q @ rotation  # R^T q
        scale = ((w.unsqueeze(-1) * turned.square()).sum(1) / extent).sqrt()
        rotation = nearest_rotation(_spread(q, p * scale.unsqueeze(1), w))
    return rotation * scale.unsqueeze(1)
