"""Errors of an affine matrix against the true one."""

from __future__ import annotations

import torch

__all__ = ["matrix_errors"]


def matrix_errors(
    estimate: torch.Tensor, truth: torch.Tensor, half_width: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Distance of matrices about a common centre 0 from the true ones, one number per pair.

    - ``rotation_error``: angle between the rotations nearest to both, degrees;
    - ``translation_error``: distance between the images of the centre, mm;
    - ``distance``: root mean square, over the volume, of the distance between the images of a
      point, mm: sqrt(|t|^2 + sum_j |column_j|^2 h_j^2 / 3) of the difference, half widths h.

    Args:
        estimate: ``(B, 4, 4)``.
        truth: ``(B, 4, 4)``.
        half_width: ``(d,)`` mm.
    """
    d = len(half_width)
    apart = estimate[:, :d] - truth[:, :d]
    squares = apart[:, :, :d].square().sum(1) * half_width.square() / 3
    far = apart[:, :, 3].square().sum(1)
    rotations = []
    for matrix in (estimate, truth):
        u, _, vh = torch.linalg.svd(matrix[:, :d, :d])
        sign = torch.linalg.det(u @ vh)
        u = torch.cat([u[:, :, :-1], u[:, :, -1:] * sign.view(-1, 1, 1)], dim=2)
        rotations.append(u @ vh)
    turn = rotations[0] @ rotations[1].mT
    # From the chord, which unlike the arc cosine of the trace is exact for small angles too.
    chord = (turn - torch.eye(d, dtype=turn.dtype, device=turn.device)).square().sum((1, 2)).sqrt()
    angle = 2 * torch.asin((chord / 8**0.5).clamp(max=1))
    return {
        "rotation_error": torch.rad2deg(angle),
        "translation_error": far.sqrt(),
        "distance": (far + squares.sum(1)).sqrt(),
    }
