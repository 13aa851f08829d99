"""Transform files: affines as ITK and 4x4 text files, displacement fields of ITK and ANTs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from scripts.errors import CohortError
from scripts.runtime.input_files import check_file, read_text
from scripts.spatial.grid import Grid
from scripts.spatial.nifti import image_affine
from scripts.spatial.transforms import NO_INVERSE, TO_LPS, AffineTransform, FieldTransform
from scripts.spatial.volumes import finite_values, open_image

__all__ = [
    "TransformFile",
    "read_affine",
    "read_transform",
    "transform_names",
    "write_affine_files",
    "write_itk_affine",
]


def transform_names(subject: str, source: str, target: str) -> tuple[str, str]:
    """File names of an affine, named as BIDS derivatives name transforms: ITK text, 4x4 text.

    Both resample images of ``source`` onto ``target``: they map target points to source points.
    """
    stem = f"{subject}_from-{source}_to-{target}_mode-image_xfm"
    return f"{stem}.txt", f"{stem}_ras.txt"


def write_itk_affine(path: str | Path, matrix: np.ndarray, spatial_dims: int = 3) -> None:
    """Write a transform that antsApplyTransforms and SimpleITK read, in ITK's world (LPS).

    Args:
        path: ``.txt`` or ``.tfm``.
        matrix: ``(4, 4)``, RAS mm, from target point to source point, the direction that ITK
        stores.
        spatial_dims: 2 for a plane, whose matrix doesn't change z.

    Raises:
        ValueError: the matrix for a plane changes z.
    """
    d = spatial_dims
    lps = TO_LPS @ np.asarray(matrix, dtype=np.float64) @ TO_LPS
    if d == 2 and not np.allclose(lps[2], (0, 0, 1, 0), atol=1e-6):
        raise ValueError("the transform of a plane changes z: ITK can't store it in two dimensions")
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
    """Write both directions, each as ITK text and as 4x4 text.

    Args:
        folder: destination.
        subject: used in the file names.
        source: name of the space of the images that the matrix resamples.
        target: name of the space that they are resampled to.
        matrix: ``(4, 4)``, RAS mm, from target point to source point.
        spatial_dims: 2 for planes.
    """
    back = np.linalg.inv(matrix)
    for names, one in (
        (transform_names(subject, source, target), matrix),
        (transform_names(subject, target, source), back),
    ):
        # ITK's two-dimensional transforms can't represent an oblique plane.
        flat = spatial_dims == 2 and np.allclose(one[2], (0, 0, 1, 0), atol=1e-6)
        write_itk_affine(folder / names[0], one, 2 if flat else 3)
        np.savetxt(folder / names[1], one, fmt="%.17g")


_MATRIX_KINDS = ("AffineTransform", "MatrixOffsetTransformBase")

_LONGEST = 1 << 16  # bytes; unpacked, a MATLAB file is at most a thousand times as large


@dataclass(frozen=True)
class TransformFile:
    """A transform file, and whether to invert it, as in antsApplyTransforms' ``[file,1]``."""

    path: Path
    inverted: bool = False


def read_transform(file: TransformFile) -> AffineTransform | FieldTransform:
    """Read a displacement field (``.nii[.gz]``) or an affine (``.mat``, ``.txt``, ``.tfm``).

    Raises:
        CohortError: the file can't be read, is of another kind, or can't be inverted.
    """
    name = file.path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        if file.inverted:
            raise CohortError(f"{file.path}: {NO_INVERSE}")
        return _read_field(file.path)
    if name.endswith((".mat", ".txt", ".tfm")):
        affine = read_affine(file.path)
        return ~affine if file.inverted else affine
    raise CohortError(
        f"{file.path}: not a supported transform; must be a displacement field (.nii, .nii.gz) or "
        "an affine as ITK writes it (.mat, .txt, .tfm)"
    )


def _read_field(path: Path) -> FieldTransform:
    image = open_image(path)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) != 5 or shape[3:] != (1, 3) or min(shape) < 1:
        raise CohortError(
            f"{path}: a displacement field must have shape (X, Y, Z, 1, 3), got {shape}"
        )
    data = finite_values(path, image)
    ras = np.moveaxis(data[:, :, :, 0, :], -1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    grid = Grid(shape[:3], image_affine(path, image), image.header.copy())
    return FieldTransform(np.ascontiguousarray(ras), grid)


def read_affine(path: str | Path) -> AffineTransform:
    """Read an affine: ITK's binary (``.mat``, MATLAB v4) or text (``.txt``, ``.tfm``), or 4x4 text.

    ``y = M (x - c) + t + c``: the parameters hold M row by row, then t; the fixed parameters hold
    the centre c (ITK's `MatrixOffsetTransformBase`), LPS. A plane's transform doesn't change z.

    Text may also contain the 4x4 matrix itself, RAS mm, as `write_affine_files` writes it.

    Raises:
        CohortError: the file can't be read, doesn't contain exactly one such transform, or its
            matrix can't be inverted.
    """
    file = Path(path)
    if file.name.lower().endswith(".mat"):
        matrix = _of_itk(file, *_read_mat(file))
    else:
        text = _read_text(file)
        plain = _plain_matrix(file, text)
        matrix = _of_itk(file, *_itk_fields(file, text)) if plain is None else plain
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise CohortError(f"{file}: its matrix can't be inverted, so it isn't a transform")
    return AffineTransform(matrix)


def _of_itk(path: Path, kind: str, parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The matrix ``(4, 4)``, RAS mm."""
    if kind.split("_")[0] not in _MATRIX_KINDS or (len(parameters), len(centre)) not in (
        (12, 3),
        (6, 2),
    ):
        raise CohortError(
            f"{path}: contains {kind} with {len(parameters)} parameters; must be one of "
            f"{', '.join(_MATRIX_KINDS)} with 12 and a centre"
        )
    d = len(centre)
    lps = np.eye(4)
    lps[:d, :d] = parameters[: d * d].reshape(d, d)
    lps[:d, 3] = parameters[d * d :] + centre - lps[:d, :d] @ centre
    signs = np.diag(TO_LPS)
    return signs[:, None] * lps * signs  # without sums, so that infinities stay as they are


def _plain_matrix(path: Path, text: str) -> np.ndarray | None:
    """The matrix in a file of numbers only; None for any other file."""
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


def _read_mat(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    size = check_file(path).st_size
    if size > _LONGEST:
        raise CohortError(
            f"{path}: can't be read: has {size} bytes, an affine has at most {_LONGEST}"
        )
    try:
        content = loadmat(str(path), appendmat=False)
    except (
        MatReadError, NotImplementedError, ArithmeticError, LookupError, MemoryError, OSError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or "not a MATLAB file"
        raise CohortError(f"{path}: can't be read: {reason}") from error
    kinds = [name for name in content if not name.startswith("__") and name != "fixed"]
    if len(kinds) != 1 or "fixed" not in content:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise CohortError(f"{path}: has {found}, not one ITK transform and its centre ('fixed')")
    try:
        parameters, centre = (
            np.asarray(content[name], dtype=np.float64).ravel() for name in (kinds[0], "fixed")
        )
    except (TypeError, ValueError) as error:
        raise CohortError(f"{path}: {kinds[0]} contains an entry that isn't a number") from error
    return kinds[0], parameters, centre


def _read_text(path: Path) -> str:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    try:
        return read_text(path, _LONGEST, encoding="ascii")
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: can't be read: not the text of an ITK transform") from error


def _itk_fields(path: Path, text: str) -> tuple[str, np.ndarray, np.ndarray]:
    fields = re.findall(r"^(Transform|Parameters|FixedParameters):(.*)$", text, re.MULTILINE)
    if [name for name, _ in fields] != ["Transform", "Parameters", "FixedParameters"]:
        kinds = [value.strip() for name, value in fields if name == "Transform"]
        raise CohortError(
            f"{path}: contains {', '.join(kinds) or 'no transform'}; must be one ITK transform "
            "with Transform:, Parameters: and FixedParameters:, or a 4x4 matrix"
        )
    try:
        parameters, centre = (np.array(fields[i][1].split(), dtype=np.float64) for i in (1, 2))
    except ValueError as error:
        raise CohortError(f"{path}: contains a parameter that isn't a number") from error
    return fields[0][1].strip(), parameters, centre
