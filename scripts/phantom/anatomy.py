"""The central anatomy: bundles as smooth curves in millimetres (RAS, MNI-like)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Vector = tuple[float, float, float]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Bundle:
    """A distribution of streamlines of one tract.

    Args:
        name: file-safe name, ``_l`` or ``_r`` at the end where the tract is paired.
        knots: points of the centre curve, mm.
        fan: half widths (vectors, mm) of the fans at the first and at the last knot.
        stem: standard deviation of a streamline's distance from the centre curve, mm.
        share: number of streamlines, relative to a bundle of share 1.
    """

    name: str
    knots: tuple[Vector, ...]
    fan: tuple[Vector, Vector]
    stem: float = 2.8
    share: float = 1.0

    def mirrored(self, name: str) -> Bundle:
        """The same bundle on the other side of the midline (x = 0)."""
        flip = [tuple(point * np.array([-1.0, 1.0, 1.0])) for point in np.array(self.knots)]
        fans = [tuple(vector * np.array([-1.0, 1.0, 1.0])) for vector in np.array(self.fan)]
        return replace(self, name=name, knots=tuple(flip), fan=(fans[0], fans[1]))

    def curve(self, step: float) -> FloatArray:
        """Points (M, 3) along the centre curve, equally spaced by at most ``step`` mm."""
        knots = np.array(self.knots)
        chord = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))]
        spline = CubicSpline(chord, knots)
        fine = np.linspace(0.0, chord[-1], 2000)
        points = spline(fine)
        arc = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        wanted = np.linspace(0.0, arc[-1], int(np.ceil(arc[-1] / step)) + 1)
        return spline(np.interp(wanted, arc, fine))


def _pair(bundle: Bundle) -> tuple[Bundle, Bundle]:
    left = replace(bundle, name=f"{bundle.name}_l")
    return left, bundle.mirrored(f"{bundle.name}_r")


FORCEPS_MINOR = Bundle(
    "forceps_minor",
    ((-27, 54, 8), (-19, 42, 9), (-10, 31, 8), (0, 27, 7), (10, 31, 8), (19, 42, 9), (27, 54, 8)),
    ((4, 1, 13), (-4, 1, 13)),
    share=1.2,
)
FORCEPS_MAJOR = Bundle(
    "forceps_major",
    (
        (-20, -90, 6), (-25, -74, 10), (-22, -56, 15), (-11, -43, 17), (0, -39, 17),
        (11, -43, 17), (22, -56, 15), (25, -74, 10), (20, -90, 6),
    ),
    ((4, 0, 12), (-4, 0, 12)),
    share=1.2,
)  # fmt: skip
CALLOSAL_BODY = Bundle(
    "callosal_body",
    ((-32, -12, 60), (-25, -10, 46), (-15, -8, 33), (0, -6, 26),
     (15, -8, 33), (25, -10, 46), (32, -12, 60)),
    ((2, 20, -2), (-2, 20, -2)),
    share=1.4,
)  # fmt: skip
CORTICOSPINAL = Bundle(
    "corticospinal",
    ((-6, -30, -46), (-9, -25, -30), (-14, -19, -14), (-22, -15, 2),
     (-25, -18, 18), (-25, -22, 36), (-28, -26, 62)),
    ((1, 1, 0), (17, 5, -6)),
    share=1.2,
)  # fmt: skip
ARCUATE = Bundle(
    "arcuate",
    ((-55, -22, -14), (-52, -38, -4), (-44, -50, 12), (-37, -46, 28),
     (-35, -28, 34), (-37, -6, 31), (-46, 14, 20)),
    ((2, 10, 5), (-4, 4, 10)),
)  # fmt: skip
CINGULUM = Bundle(
    "cingulum",
    ((-7, 38, -4), (-8, 38, 14), (-8, 24, 29), (-8, 2, 37),
     (-8, -22, 39), (-9, -42, 33), (-13, -55, 14), (-20, -42, -2)),
    ((0, 6, 4), (3, 5, 2)),
    stem=2.5,
)  # fmt: skip
UNCINATE = Bundle(
    "uncinate",
    ((-40, 4, -38), (-37, 0, -26), (-33, 3, -15), (-29, 14, -9),
     (-24, 30, -8), (-18, 52, -6)),
    ((7, 5, 1), (7, -2, 7)),
    stem=2.5,
)  # fmt: skip
INFERIOR_LONGITUDINAL = Bundle(
    "inferior_longitudinal",
    ((-46, 2, -32), (-44, -16, -22), (-41, -38, -10), (-36, -62, -2), (-26, -88, 2)),
    ((5, 4, 4), (4, 1, 11)),
)

_SHARED = (FORCEPS_MINOR, FORCEPS_MAJOR, CALLOSAL_BODY, *_pair(CORTICOSPINAL))
ANATOMIES: tuple[tuple[Bundle, ...], ...] = (
    (*_SHARED, *_pair(ARCUATE), *_pair(CINGULUM), *_pair(UNCINATE)),
    (*_SHARED, *_pair(INFERIOR_LONGITUDINAL)),
)
"""Two kinds of people: the second lacks three paired tracts of the first and has another one, so
no smooth warp turns one into the other."""
