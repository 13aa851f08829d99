"""Initialisations of a registration: centres of mass, principal axes, a search of rotations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from scripts.registration.images import WorldImage
from scripts.spatial.affine_parameters import Frame

__all__ = ["STARTS", "rotations_all_over", "starting_matrices"]

STARTS = ("identity", "centre", "axes", "search")
_SEARCHED = 96  # rotations of a search: neighbours are about 45 degrees apart
_SEARCHED_2D = 16


def starting_matrices(fixed: WorldImage, moving: WorldImage, kinds: Sequence[str]) -> torch.Tensor:
    """Rigid initial transforms for a pair.

    - ``identity``: unregistered;
    - ``centre``: aligns the centres of mass;
    - ``axes``: also aligns the principal axes, in each of the proper ways (4 in a volume, 2 in a
      plane), which finds any rotation of an elongated object;
    - ``search``: tries rotations in all directions about the centres of mass, also for round
    objects.

    Mass is intensity above the image's minimum.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        kinds: a selection of `STARTS`.

    Returns:
        ``(S, 4, 4)`` float64, fixed point to moving point, mm.
    """
    result = []
    centre_f, axes_f = _moments(fixed)
    centre_m, axes_m = _moments(moving)
    for kind in kinds:
        if kind == "identity":
            result.append(np.eye(4))
        elif kind == "centre":
            result.append(_about(np.eye(3), centre_f, centre_m))
        elif kind == "axes":
            d = len(fixed.shape)
            for signs in itertools.product((1.0, -1.0), repeat=d):
                turn = axes_m @ np.diag([*signs, 1.0][:3]) @ axes_f.T
                if np.linalg.det(turn) > 0:
                    result.append(_about(turn, centre_f, centre_m))
        elif kind == "search":
            axes = Frame.of_grid(fixed.affine, fixed.shape).axes.numpy()
            result += [
                _about(axes @ turn @ axes.T, centre_f, centre_m)
                for turn in rotations_all_over(len(fixed.shape))
            ]
        else:
            raise ValueError(f"a start must be one of {', '.join(STARTS)}, got {kind!r}")
    if not result:
        raise ValueError("at least one start is needed, got none")
    return torch.from_numpy(np.stack(result)).to(fixed.values.device)


def rotations_all_over(spatial_dims: int = 3) -> np.ndarray:
    """Rotations that cover all rotations evenly, ``(N, 3, 3)``.

    In a volume by super-Fibonacci spirals (Alexa, CVPR 2022); in a plane every 22.5 degrees.
    """
    if spatial_dims == 2:
        angles = np.arange(_SEARCHED_2D) * 2 * math.pi / _SEARCHED_2D
        c, s, o = np.cos(angles), np.sin(angles), np.zeros_like(angles)
        flat = np.stack([c, -s, o, s, c, o, o, o, o + 1], axis=1)
        return flat.reshape(-1, 3, 3)
    step = np.arange(_SEARCHED) + 0.5
    t = step / _SEARCHED
    first = 2 * math.pi * step / math.sqrt(2)
    second = 2 * math.pi * step / 1.533751168755204288118041
    x, y = np.sqrt(t) * np.sin(first), np.sqrt(t) * np.cos(first)
    z, w = np.sqrt(1 - t) * np.sin(second), np.sqrt(1 - t) * np.cos(second)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, axis=1).reshape(-1, 3, 3)


def _moments(image: WorldImage) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass ``(3,)`` and principal axes ``(3, 3)`` (longest first) in RAS mm."""
    mass = image.values[0].sum(0).double()
    mass = mass - mass.amin()
    if image.inside is not None:
        mass = mass * image.inside[0, 0]
    if image.hole is not None:
        mass = mass * (1 - image.hole[0, 0])
    d = mass.dim()
    total = float(mass.sum())
    frame = Frame.of_grid(image.affine, image.shape)
    if total <= 0:
        return frame.centre.numpy(), frame.axes.numpy()
    axes = [torch.arange(n, dtype=torch.float64, device=mass.device) for n in mass.shape]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centre = (mesh * mass).flatten(1).sum(1) / total
    away = (mesh - centre.view(-1, *[1] * d)).flatten(1)
    spread = ((away * mass.flatten()) @ away.T / total).cpu().numpy()
    linear = image.affine[:3, :d]
    world = linear @ centre.cpu().numpy() + image.affine[:3, 3]
    # In the axes of the grid, so that a plane's normal stays the last one.
    local = frame.axes.numpy()[:, :d].T @ linear
    _, vectors = np.linalg.eigh(local @ spread @ local.T)
    turned = np.eye(3)
    turned[:d, :d] = vectors[:, ::-1]
    principal = frame.axes.numpy() @ turned
    if np.linalg.det(principal) * np.linalg.det(frame.axes.numpy()) < 0:
        principal[:, d - 1] *= -1
    return world, principal


def _about(turn: np.ndarray, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Rotation about the fixed centre, which is mapped to the moving centre."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = moving - turn @ fixed
    return matrix
