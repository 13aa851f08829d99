"""Affine transforms as files: ITK's text, and 4x4 text in RAS millimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.atlas.transforms import read_affine
from scripts.errors import CohortError
from scripts.outside import FileError, read_text

__all__ = ["read_any_affine", "transform_names", "write_affine_files", "write_itk_affine"]

_LONGEST = 1 << 16  # bytes
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def transform_names(subject: str, source: str, target: str) -> tuple[str, str]:
    """File names of an affine, as BIDS derivatives name transforms: ITK text, 4x4 text.

    Either resamples images of ``source`` onto ``target``: it takes target points to source points.
    """
    stem = f"{subject}_from-{source}_to-{target}_mode-image_xfm"
    return f"{stem}.txt", f"{stem}_ras.txt"


def write_itk_affine(path: str | Path, matrix: np.ndarray, spatial_dims: int = 3) -> None:
    """Write a transform that antsApplyTransforms and SimpleITK read, in ITK's world (LPS).

    Args:
        path: ``.txt`` or ``.tfm``.
        matrix: ``(4, 4)``, RAS mm, target point to source point, ITK's own direction.
        spatial_dims: 2 for a plane, whose matrix leaves z alone.

    Raises:
        ValueError: a matrix for a plane moves z.
    """
    d = spatial_dims
    lps = _TO_LPS @ np.asarray(matrix, dtype=np.float64) @ _TO_LPS
    if d == 2 and not np.allclose(lps[2], (0, 0, 1, 0), atol=1e-6):
        raise ValueError("the transform of a plane moves z: ITK can't hold it in two dimensions")
    values = [*lps[:d, :d].ravel(), *lps[:d, 3]]
    lines = (
        "#Insight Transform File V1.0",
        "#Transform 0",
        f"Transform: AffineTransform_double_{d}_{d}",
        "Parameters: " + " ".join(f"{value:.17g}" for value in values),
        "FixedParameters: " + " ".join(["0"] * d),
        "",
    )
    Path(path).write_text("\n".join(lines), encoding="ascii")


def write_affine_files(
    folder: Path, subject: str, source: str, target: str, matrix: np.ndarray, spatial_dims: int = 3
) -> None:
    """Both directions, each as ITK text and as 4x4 text.

    Args:
        folder: where to.
        subject: names the files.
        source: what the space of the images is called that the matrix resamples.
        target: what the space is called that they are brought to.
        matrix: ``(4, 4)``, RAS mm, target point to source point.
        spatial_dims: 2 for planes.
    """
    back = np.linalg.inv(matrix)
    for names, one in (
        (transform_names(subject, source, target), matrix),
        (transform_names(subject, target, source), back),
    ):
        # A plane that lies obliquely in the world is no transform of ITK's two dimensions.
        flat = spatial_dims == 2 and np.allclose(one[2], (0, 0, 1, 0), atol=1e-6)
        write_itk_affine(folder / names[0], one, 2 if flat else 3)
        np.savetxt(folder / names[1], one, fmt="%.17g")


def read_any_affine(path: str | Path) -> np.ndarray:
    """A ``(4, 4)`` matrix in RAS mm from ITK's ``.mat``, ``.txt`` and ``.tfm``, or 4x4 text.

    Raises:
        CohortError: the file is none of them, or its matrix can't be inverted.
    """
    file = Path(path)
    if not file.name.lower().endswith(".mat"):
        try:
            text = read_text(file, _LONGEST, encoding="ascii")
            rows = [line.split() for line in text.splitlines()]
            rows = [row for row in rows if row and not row[0].startswith("#")]
            matrix = np.array([[float(word) for word in row] for row in rows])
        except (FileError, ValueError):
            return read_affine(file).matrix  # with its own message
        sound = matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())
        if not sound or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise CohortError(f"{file}: holds no 4x4 matrix whose last row is 0 0 0 1")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise CohortError(f"{file}: its matrix can't be inverted, so that it is no transform")
        return matrix
    return read_affine(file).matrix
