"""What the slow part of a stack's transforms follows.

Neighbours agree best where curved anatomy is straightened: a chain of pairs drifts from the
truth, slowly and smoothly. Known placements are coarse, but don't drift. So the transforms
keep their fast part and take the slow part of the placements: C_z becomes C_z S_z, where S is
C_z^-1 P_z smoothed over the sections, P being the known placement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from scripts.errors import CohortError
from scripts.runtime.input_files import read_json
from scripts.settings.stack import UNITS
from scripts.stack.planar import PlanarModel, Plane
from scripts.stack.search import MIRROR

__all__ = ["Wander", "follow", "interpolated", "read_placement", "smooth", "wander_of"]


def smooth(known: np.ndarray, values: np.ndarray, at: np.ndarray, sigma: float) -> np.ndarray:
    """Local linear regression with Gaussian weights.

    Unlike a mean it has no bias at the ends, and a straight line stays what it is.

    Args:
        known: ``(n,)`` positions of the values.
        values: ``(n, P)``.
        at: ``(m,)`` wanted positions.
        sigma: of the weights, in units of the positions.

    Returns:
        ``(m, P)``.

    Example:
        >>> z = np.arange(5.0)
        >>> smooth(z, 2 * z[:, None] + 1, z, 3.0).ravel().round(9).tolist()
        [1.0, 3.0, 5.0, 7.0, 9.0]
    """
    result = np.empty((len(at), values.shape[1]))
    for k, place in enumerate(at):
        away = known - place
        weights = np.exp(-((away / sigma) ** 2) / 2)
        # Far from everything known the nearest ones still count.
        weights = np.maximum(weights, 1e-12 * np.exp(-np.abs(away) / sigma))
        root = np.sqrt(weights / weights.max())
        basis = np.stack([np.ones_like(away), away], axis=1)
        if len(known) == 1:
            result[k] = values[0]
            continue
        result[k] = np.linalg.lstsq(basis * root[:, None], values * root[:, None], rcond=1e-9)[0][0]
    return result


def follow(
    matrices: np.ndarray,
    placements: Mapping[int, np.ndarray],
    model: PlanarModel,
    plane: Plane,
    sigma: float,
) -> np.ndarray:
    """Transforms with the slow part of known placements.

    Between the sections whose placement is known the correction is interpolated monotonically
    (PCHIP), so that it does not overshoot, and then smoothed over all sections.

    Args:
        matrices: ``(sections, 3, 3)``, physical, registered frame to section.
        placements: the known transforms of some sections.
        model: family of the correction.
        plane: of a section.
        sigma: of the smoothing, sections.
    """
    known = sorted(placements)
    corrections = _parameters(
        [np.linalg.inv(matrices[z]) @ placements[z] for z in known], model, plane
    )
    between = np.arange(known[0], known[-1] + 1, dtype=np.float64)
    if len(between) > len(known):
        corrections = PchipInterpolator(known, corrections)(between)
    wanted = np.arange(len(matrices), dtype=np.float64)
    smoothed = smooth(between, corrections, wanted, sigma)
    slow = np.stack([model.matrix(one, plane) for one in smoothed])
    return matrices @ slow


def _parameters(matrices: Sequence[np.ndarray], model: PlanarModel, plane: Plane) -> np.ndarray:
    """``(n, P)``, angles unwrapped."""
    result = np.stack([model.parameters(matrix, plane) for matrix in matrices])
    result[:, 0] = np.unwrap(result[:, 0])
    return result


@dataclass(frozen=True)
class Wander:
    """Distance of the slow part of a chain from the unregistered sections, pixels.

    Attributes:
        rms: over sections and the five points.
        largest: of a section, over its points.
        section: of the largest.
    """

    rms: float
    largest: float
    section: int


def wander_of(matrices: np.ndarray, model: PlanarModel, plane: Plane, sigma: float) -> Wander:
    """Measure it. Unregistered sections have the identity; a displacement common to all doesn't
    count.
    """
    unturned = [m @ MIRROR if np.linalg.det(m[:2, :2]) < 0 else m for m in matrices]
    corrections = _parameters([np.linalg.inv(matrix) for matrix in unturned], model, plane)
    places = np.arange(len(matrices), dtype=np.float64)
    slow = smooth(places, corrections, places, sigma)
    points = np.stack([model.matrix(one, plane) @ plane.five_points for one in slow])[:, :2]
    apart = np.sqrt(((points - points.mean(0)) ** 2).sum(1)) / plane.pixel
    worst = int(apart.max(1).argmax())
    return Wander(float(np.sqrt((apart**2).mean())), float(apart[worst].max()), worst)


def interpolated(
    matrices: np.ndarray, unknown: Sequence[int], model: PlanarModel, plane: Plane
) -> np.ndarray:
    """Transforms of which some are placed between their neighbours, linearly in the parameters.

    Args:
        matrices: ``(sections, 3, 3)``, physical.
        unknown: indices of those to be placed.
        model: family.
        plane: of a section.
    """
    known = [z for z in range(len(matrices)) if z not in set(unknown)]
    if not known or not unknown:
        return matrices
    turned = {z: bool(np.linalg.det(matrices[z, :2, :2]) < 0) for z in known}
    straight = [matrices[z] @ MIRROR if turned[z] else matrices[z] for z in known]
    parameters = _parameters(straight, model, plane)
    placed = matrices.copy()
    for z in unknown:
        values = np.array([np.interp(z, known, column) for column in parameters.T])
        nearest = min(known, key=lambda other: (abs(other - z), other))
        matrix = model.matrix(values, plane)
        placed[z] = matrix @ MIRROR if turned[nearest] else matrix
    return placed


# ---------------------------------------------------------------------------------------------
# Files of known placements
# ---------------------------------------------------------------------------------------------


def read_placement(
    path: str | Path, names: Sequence[str], plane: Plane, unit: str, model: PlanarModel
) -> dict[int, np.ndarray]:
    """Placements by section, physical.

    Args:
        path: JSON: an earlier ``transforms.json`` (or one of some ``sections``, each with
            ``index`` and ``composed``), or QuickNII's or DeepSlice's ``slices``.
        names: of the sections.
        plane: of a section.
        unit: of the spacing.
        model: family of the placements.

    Raises:
        CohortError: the file can't be read, or places fewer than two of the sections.
    """
    file = Path(path)
    try:
        content = read_json(file)
    except (ValueError, UnicodeDecodeError) as error:
        raise CohortError(f"{file}: is not JSON ({error})") from error
    try:
        if isinstance(content, dict) and isinstance(content.get("sections"), list):
            matrices = _from_transforms(content, len(names), plane, unit)
        elif isinstance(content, dict) and isinstance(content.get("slices"), list):
            matrices = _from_anchoring(content["slices"], names, plane)
        else:
            raise ValueError("has neither sections nor slices")
        placed = {
            z: model.matrix(model.parameters(m @ _turn(m), plane), plane) @ _turn(m)
            for z, m in matrices.items()
        }
    except (
        KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError,
        np.linalg.LinAlgError,
    ) as error:  # fmt: skip
        raise CohortError(f"{file}: is not a file of placements: {error!r}") from error
    if len(placed) < 2:
        raise CohortError(f"{file}: places {len(placed)} of the sections; must place two at least")
    return placed


def _turn(matrix: np.ndarray) -> np.ndarray:
    return MIRROR if np.linalg.det(matrix[:2, :2]) < 0 else np.eye(3)


def _matrix(values: Any) -> np.ndarray:
    matrix = np.array(values, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError("a matrix is not 3x3 or not finite")
    return matrix


def _from_transforms(
    content: Mapping[str, Any], count: int, plane: Plane, unit: str
) -> dict[int, np.ndarray]:
    """Also of other pixels of the same sections, because physical positions count."""
    shape = tuple(int(n) for n in content.get("shape", plane.shape)[-2:])
    spacing = [float(n) for n in content.get("spacing", plane.spacing)[-2:]]
    ratio = UNITS[str(content.get("unit", unit))] / UNITS[unit]
    other = Plane((shape[0], shape[1]), (spacing[0] * ratio, spacing[1] * ratio))
    result = {}
    for section in content["sections"]:
        index = int(section["index"])
        if not 0 <= index < count:
            raise ValueError(f"names section {index}, but there are {count}")
        result[index] = other.physical_matrix(_matrix(section["composed"]))
    return result


def _from_anchoring(
    slices: Sequence[Mapping[str, Any]], names: Sequence[str], plane: Plane
) -> dict[int, np.ndarray]:
    """``atlas = o + column / width * u + row / height * v``, seen along the stack.

    The atlas has another scale and another place: of it only differences between the sections
    count. The frame is laid so that the mean section has the identity.
    """
    place = {name: z for z, name in enumerate(names)}
    vectors = {}
    for number, one in enumerate(slices):
        name = Path(str(one.get("file", one.get("filename", "")))).stem
        z = place.get(name, number if len(slices) == len(names) else None)
        if z is None:
            continue
        values = one["anchoring"] if "anchoring" in one else [*one["o"], *one["u"], *one["v"]]
        vectors[z] = np.array(values, dtype=np.float64).reshape(3, 3)
        if not np.isfinite(vectors[z]).all():
            raise ValueError(f"slice {name} is not finite")
    if not vectors:
        raise ValueError("names none of the sections")
    mean = np.mean(list(vectors.values()), axis=0)
    across = mean[1] / np.linalg.norm(mean[1])
    down = mean[2] - (mean[2] @ across) * across
    flat = np.stack([across, down / np.linalg.norm(down)])
    hx, hy = 2 * plane.half_width

    def onto(one: np.ndarray) -> np.ndarray:
        """A physical point of the section to the plane of the atlas."""
        o, u, v = one
        linear = np.stack([flat @ u / hx, flat @ v / hy], axis=1)
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = linear, flat @ (o + u / 2 + v / 2)
        return matrix

    middle = onto(mean)
    return {z: np.linalg.inv(onto(one)) @ middle for z, one in vectors.items()}
