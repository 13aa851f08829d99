"""A synthetic atlas of bundles, and a subject with known classes of its fibres."""

from __future__ import annotations

import numpy as np

__all__ = ["BUNDLES", "COURSE", "N_POINTS", "WALK", "synthetic_fibres"]

BUNDLES, N_POINTS = 50, 20
NOISE, SHIFT, OUTLIERS = 2.5, 1.5, 0.05
COURSE, WALK = -1, -2
"""Classes of outliers: a smooth curve anywhere in the head, and a random walk."""
BRAIN = (65.0, 85.0, 60.0)
"""Half axes of the ellipsoid that contains the bundles' ends and bends, mm."""
HEAD = (75.0, 95.0, 70.0)
"""Half sides of the box that contains the outliers' ends and bends, mm."""
STEP = 6.0
"""Length of a random walk's steps, mm."""


def _courses(start: np.ndarray, bend: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Parabolas ``(n, N_POINTS, 3)`` from ``start`` to ``stop``, pulled towards ``bend``."""
    along = np.linspace(0, 1, N_POINTS)[:, None]
    curve = (1 - along) ** 2 * start[:, None] + 2 * along * (1 - along) * bend[:, None]
    return curve + along**2 * stop[:, None]


def _bundles(rng: np.random.Generator) -> np.ndarray:
    direction = rng.standard_normal((3, BUNDLES, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return _courses(*direction * rng.random((3, BUNDLES, 1)) ** (1 / 3) * np.array(BRAIN))


def _walks(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random walks with correlated directions, around a point in the ellipsoid."""
    heading = rng.standard_normal((count, N_POINTS, 3)).cumsum(1)
    heading *= STEP / np.linalg.norm(heading, axis=-1, keepdims=True)
    walk = heading.cumsum(1)
    place = rng.standard_normal((count, 3))
    place *= rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(place, axis=-1, keepdims=True)
    return walk - walk.mean(1, keepdims=True) + (place * np.array(BRAIN))[:, None]


def _wander(count: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random deviation of each fibre, `NOISE` mm per coordinate and point."""
    waves = np.cos(np.pi * np.arange(4)[:, None] * np.linspace(0, 1, N_POINTS))
    waves /= np.sqrt((waves**2).sum(0))
    return np.einsum("nkc,kp->npc", rng.standard_normal((count, 4, 3)) * NOISE, waves)


def synthetic_fibres(
    count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An atlas and a subject of ``count`` fibres each.

    The subject's bundles are shifted by `SHIFT` mm from the atlas's, each in another direction. One
    fibre in twenty belongs to none: half of these are curves anywhere in the head's box, half
    random walks. In both, half of the fibres are reversed.

    Returns:
        Subject ``(count, N_POINTS, 3)`` float32 in mm, its classes with `COURSE` or `WALK` for
        outliers, and atlas and classes likewise.
    """
    rng = np.random.default_rng(seed)
    centres = _bundles(rng)
    shifts = rng.standard_normal((BUNDLES, 1, 3))
    shifts *= SHIFT / np.linalg.norm(shifts, axis=-1, keepdims=True)
    atlas_classes = np.sort(rng.integers(0, BUNDLES, count))
    atlas = (centres[atlas_classes] + _wander(count, rng)).astype(np.float32)
    classes = rng.integers(0, BUNDLES, count)
    subject = ((centres + shifts)[classes] + _wander(count, rng)).astype(np.float32)
    lost = rng.permutation(count)[: round(OUTLIERS * count)]
    courses, walks = np.array_split(lost, 2)
    classes[courses], classes[walks] = COURSE, WALK
    subject[courses] = _courses(*rng.uniform(-1, 1, (3, len(courses), 3)) * np.array(HEAD))
    subject[walks] = _walks(len(walks), rng)
    for fibres in (subject, atlas):
        turned = rng.random(count) < 0.5
        fibres[turned] = fibres[turned, ::-1]
    return subject, classes, atlas, atlas_classes
