"""4x4 matrices as text, which doesn't record what they map (FSL, RAS mm), and FreeSurfer's LTA."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from scripts.errors import CohortError
from scripts.spatial.grid import Grid

__all__ = ["guessed_kind", "lta_matrix", "plain_matrix", "ras_of_fsl"]

logger = logging.getLogger(__name__)

_MRTRIX = re.compile(r"^#.*\b(mrtrix|mrtransform|transformconvert|mrregister|transformcalc)", re.M)
_FLIRT = re.compile(r"-?\d+\.(\d{3,17})")  # its numbers have 10 decimals and two blanks between
_WHICH = (
    "it may be FLIRT's (kind fsl), or one in RAS mm, as MRtrix, greedy, NiftyReg and this bundle "
    "write it (kind ras); say which: {'path': '%s', 'kind': 'ras'}, or {'path': '%s', 'kind': "
    "'fsl', 'moving': <image of flirt -in>, 'fixed': <image of flirt -ref>}"
)


def plain_matrix(path: Path, text: str) -> np.ndarray | None:
    """The matrix of a file that contains only numbers; None for other files.

    Raises:
        CohortError: the numbers aren't a 4x4 matrix.
    """
    rows = [line.split() for line in text.splitlines()]
    rows = [row for row in rows if row and not row[0].startswith("#")]
    try:
        matrix = np.array([[float(word) for word in row] for row in rows])
    except ValueError:
        return None
    if not len(matrix):
        return None
    if matrix.shape != (4, 4) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise CohortError(f"{path}: not a 4x4 matrix whose last row is 0 0 0 1")
    return matrix


def guessed_kind(path: Path, text: str) -> str:
    """The kind of a 4x4 matrix whose kind wasn't given: ``ras``.

    Files of this bundle (``_ras.txt``) and of MRtrix, which has its name in a comment, are
    recognised. Any other ``.txt`` is read as RAS mm, with a warning.

    Raises:
        CohortError: the file is written as FLIRT writes, or is a ``.mat``, which several programs
            use for different kinds.
    """
    name = path.name.lower()
    if name.endswith("_ras.txt") or _MRTRIX.search(text):
        return "ras"
    rows = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [word for line in rows for word in line.split()]
    decimals = {len(match[1]) if (match := _FLIRT.fullmatch(word)) else 0 for word in words}
    # Others write as few decimals as a number needs, or an exponent.
    as_flirt = any(re.search(r"\S  +\S|\S  +$", line) for line in rows) or (
        len(decimals) == 1 and 0 not in decimals
    )
    if name.endswith(".mat"):
        raise CohortError(
            f"{path}: is text, a 4x4 matrix, and not ITK's .mat; {_WHICH % (path, path)}"
        )
    if as_flirt:
        raise CohortError(
            f"{path}: is a 4x4 matrix that looks like FLIRT's; {_WHICH % (path, path)}"
        )
    logger.warning(
        "%s: is a 4x4 matrix of unknown kind, and is read as RAS mm; %s",
        path, _WHICH % (path, path),
    )  # fmt: skip
    return "ras"


def ras_of_fsl(matrix: np.ndarray, moving: Grid, fixed: Grid) -> np.ndarray:
    """FLIRT's matrix as the map that resampling needs, fixed point to moving point, RAS mm.

    FSL's coordinates are voxel indices times voxel sizes. The first axis is reversed if the image's
    affine has a positive determinant. FLIRT's matrix maps ``-in`` to ``-ref``.

    Args:
        matrix: ``(4, 4)`` as FLIRT wrote it.
        moving: grid of ``-in``.
        fixed: grid of ``-ref``.
    """
    return np.asarray(
        _fsl_to_ras(moving) @ np.linalg.inv(matrix) @ np.linalg.inv(_fsl_to_ras(fixed))
    )


def _fsl_to_ras(grid: Grid) -> np.ndarray:
    sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
    to_fsl = np.diag([*sizes, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        to_fsl[0, 0], to_fsl[0, 3] = -sizes[0], (grid.shape[0] - 1) * sizes[0]
    return np.asarray(grid.affine @ np.linalg.inv(to_fsl))


def lta_matrix(path: Path, text: str) -> np.ndarray:
    """FreeSurfer's LTA as the map that resampling needs, destination point to source point, RAS mm.

    Its matrix maps the source volume to the destination, in voxels (type 0) or RAS (type 1).

    Raises:
        CohortError: the file has several transforms, another type, or no geometry of its volumes.
    """
    try:
        kind = int(_value(text, "type"))
        if int(_value(text, "nxforms")) != 1:
            raise ValueError("it contains several transforms")
        rows = re.search(r"^1 4 4\s*\n((?:.*\n){3}.*)", text, re.M)
        if rows is None:
            raise ValueError("it contains no 4x4 matrix")
        matrix = np.array([[float(word) for word in row.split()] for row in rows[1].split("\n")])
        if matrix.shape != (4, 4):
            raise ValueError("it contains no 4x4 matrix")
        if kind == 0:
            source, target = (_lta_volume(text, name) for name in ("src", "dst"))
            matrix = target @ matrix @ np.linalg.inv(source)
        elif kind != 1:
            raise ValueError(f"its type is {kind}, not 0 (voxels) or 1 (RAS)")
        return np.linalg.inv(matrix)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise CohortError(
            f"{path}: can't be read as FreeSurfer's LTA: {error}; lta_convert --outitk makes ITK's "
            "text of any"
        ) from error


def _value(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*=\s*([^#\n]*)", text, re.M)
    if match is None:
        raise ValueError(f"it has no {name}")
    return match[1].strip()


def _lta_volume(text: str, name: str) -> np.ndarray:
    """Voxels to RAS mm of the source or the destination."""
    part = re.search(rf"^{name} volume info\s*\n((?:[a-z]+\s*=.*\n?)*)", text, re.M)
    if part is None or _value(part[1], "valid").split()[0] != "1":
        raise ValueError(f"it doesn't give the position of its {name} volume lies")
    sizes, shape, *columns, centre = (
        np.array(_value(part[1], one).split(), dtype=np.float64)
        for one in ("voxelsize", "volume", "xras", "yras", "zras", "cras")
    )
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1) * sizes
    affine[:3, 3] = centre - affine[:3, :3] @ (shape / 2)
    return affine
