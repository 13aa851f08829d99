"""Transforms as files: fields and affines of ITK and ANTs, matrices of FSL, MRtrix, FreeSurfer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scripts.errors import CohortError
from scripts.runtime.file_names import ending_of
from scripts.runtime.input_files import check_file, read_text
from scripts.spatial.grid import Grid
from scripts.spatial.itk_transforms import itk_of_hdf5, itk_of_matlab, itk_of_text
from scripts.spatial.matrix_files import guessed_kind, lta_matrix, plain_matrix, ras_of_fsl
from scripts.spatial.overlap import fields_apart
from scripts.spatial.transforms import (
    NO_INVERSE,
    TO_LPS,
    AffineTransform,
    FieldTransform,
    Transform,
)
from scripts.spatial.volumes import finite_values, open_image, read_grid

__all__ = [
    "TransformFile",
    "read_affine",
    "read_start",
    "read_transform",
    "require_fields_cover",
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


_LONGEST = 1 << 16  # bytes of an affine's text
_SUFFIXES = ".nii, .nii.gz (a displacement field), .h5, .mat, .txt, .tfm, .lta"
_PLAIN = (".mat", ".txt", ".tfm", ".lta")


class _Entry(Protocol):
    """An entry of a setting; see `scripts.settings.transforms.TransformEntry`."""

    @property
    def path(self) -> str: ...
    @property
    def inverted(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    @property
    def moving(self) -> str | None: ...
    @property
    def fixed(self) -> str | None: ...


@dataclass(frozen=True)
class TransformFile:
    """A transform's file, and whether it is inverted, as ``[file,1]`` of antsApplyTransforms.

    Attributes:
        path: the file.
        inverted: whether the inverse is used.
        kind: ``itk``, ``ras``, ``fsl``, ``lta``; ``auto``: as the file shows.
        moving: of a FLIRT matrix, the image of its ``-in``.
        fixed: of a FLIRT matrix, the image of its ``-ref``.
    """

    path: Path
    inverted: bool = False
    kind: str = "auto"
    moving: Path | None = None
    fixed: Path | None = None

    @classmethod
    def of_entry(cls, entry: _Entry, **names: str) -> TransformFile:
        """A setting's entry, ``{name}`` in its paths standing for ``names``."""

        def named(path: str) -> Path:
            for name, value in names.items():
                path = path.replace(f"{{{name}}}", value)
            return Path(path)

        images = (None if one is None else named(one) for one in (entry.moving, entry.fixed))
        return cls(named(entry.path), entry.inverted, entry.kind, *images)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> TransformFile:
        """The inverse of `as_dict`, also for files of earlier versions."""
        images = (
            None if values.get(one) is None else Path(values[one]) for one in ("moving", "fixed")
        )
        return cls(
            Path(values["path"]), bool(values["inverted"]), values.get("kind", "auto"), *images
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; entries that are determined from the file are left out."""
        values: dict[str, Any] = {"path": str(self.path), "inverted": self.inverted}
        if self.kind != "auto":
            values["kind"] = self.kind
        for name, image in (("moving", self.moving), ("fixed", self.fixed)):
            if image is not None:
                values[name] = str(image)
        return values

    @property
    def is_field(self) -> bool:
        """Whether it is the image of a displacement field."""
        return self.kind in ("auto", "itk") and ending_of(self.path) in (".nii", ".nii.gz")

    def files(self) -> tuple[Path, ...]:
        """All files that it needs."""
        return tuple(one for one in (self.path, self.moving, self.fixed) if one is not None)


def read_transform(file: TransformFile) -> Transform:
    """Read a displacement field, an affine, or a composite of them.

    Raises:
        CohortError: the file can't be read, is of another kind, or can't be inverted.
    """
    if file.is_field:
        if file.inverted:
            raise CohortError(f"{file.path}: {NO_INVERSE}")
        return _read_field(file.path)
    if file.path.name.lower().endswith((".h5", ".hdf5")):
        result = itk_of_hdf5(file.path)
        if isinstance(result, AffineTransform):
            _require_invertible(file.path, result.matrix)
        if not file.inverted:
            return result
        try:
            return ~result
        except ValueError as error:
            raise CohortError(f"{file.path}: {error}") from error
    if file.kind == "auto" and not file.path.name.lower().endswith(_PLAIN):
        raise CohortError(f"{file.path}: not a supported transform; must be one of {_SUFFIXES}")
    affine = read_affine(file.path, file.kind, file.moving, file.fixed)
    return ~affine if file.inverted else affine


def read_start(
    entry: _Entry, moving: str | Path, fixed: str | Path, **names: str
) -> AffineTransform:
    """The affine that a setting names for a pair of images.

    Args:
        entry: of the setting.
        moving: image of a FLIRT matrix, unless the entry names one.
        fixed: likewise.
        names: see `TransformFile.of_entry`.

    Raises:
        CohortError: see `read_affine`.
    """
    file = TransformFile.of_entry(entry, **names)
    affine = read_affine(file.path, file.kind, file.moving or moving, file.fixed or fixed)
    return ~affine if file.inverted else affine


def require_fields_cover(
    who: str, chain: Sequence[Transform], files: Sequence[TransformFile], wanted: Grid
) -> None:
    """Refuse a chain with a field that no point of the wanted grid reaches: it has no effect.

    Args:
        who: for the message.
        chain: as read from ``files``.
        files: of the transforms.
        wanted: the grid whose points pass through the chain.

    Raises:
        CohortError: naming the field.
    """
    for number in fields_apart(chain, wanted):
        raise CohortError(
            f"{who}: no point of the reference comes into the grid of the field "
            f"{files[number].path}; are reference and transforms of one space, and in "
            "antsApplyTransforms's order?"
        )


def _read_field(path: Path) -> FieldTransform:
    image = open_image(path).image
    shape = tuple(int(n) for n in image.shape)
    if len(shape) != 5 or shape[3:] != (1, 3) or min(shape) < 1:
        raise CohortError(
            f"{path}: a displacement field must have shape (X, Y, Z, 1, 3), got {shape}"
        )
    data = finite_values(path, image)
    ras = np.moveaxis(data[:, :, :, 0, :], -1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    grid = Grid(shape[:3], np.asarray(image.affine), image.header.copy())
    return FieldTransform(np.ascontiguousarray(ras), grid)


def read_affine(
    path: str | Path,
    kind: str = "auto",
    moving: str | Path | None = None,
    fixed: str | Path | None = None,
) -> AffineTransform:
    """Read an affine of ITK (`scripts.spatial.itk_transforms`), or a matrix of another program.

    Args:
        path: ITK's ``.mat``, ``.txt``, ``.tfm`` or ``.h5``; 4x4 text; FreeSurfer's ``.lta``.
        kind: ``itk``; ``ras``: 4x4 text in RAS mm, wanted point to resampled point; ``fsl``:
            FLIRT's; ``lta``; ``auto``: what the file shows, see `guessed_kind`.
        moving: of a FLIRT matrix, the image of its ``-in``.
        fixed: of a FLIRT matrix, the image of its ``-ref``.

    Raises:
        CohortError: the file can't be read, isn't a single affine, its kind isn't known,
            or its matrix can't be inverted.
    """
    file = Path(path)
    if file.name.lower().endswith((".h5", ".hdf5")):
        transform = itk_of_hdf5(file)
        if not isinstance(transform, AffineTransform):
            raise CohortError(f"{file}: contains a displacement field; an affine is needed here")
        matrix = transform.matrix
    elif kind in ("auto", "itk") and file.name.lower().endswith(".mat") and not _is_text(file):
        matrix = itk_of_matlab(file).matrix
    else:
        matrix = _of_text(file, kind, moving, fixed)
    return AffineTransform(_require_invertible(file, matrix))


def _of_text(
    path: Path, kind: str, moving: str | Path | None, fixed: str | Path | None
) -> np.ndarray:
    text = _read_text(path)
    if kind == "lta" or (kind == "auto" and path.name.lower().endswith(".lta")):
        return lta_matrix(path, text)
    plain = plain_matrix(path, text)
    if kind == "itk" or (kind == "auto" and plain is None):
        return itk_of_text(path, text).matrix
    if plain is None:
        raise CohortError(f"{path}: contains no 4x4 matrix, though its kind is given as {kind}")
    if kind == "auto":
        kind = guessed_kind(path, text)
    if kind == "ras":
        return plain
    if moving is None or fixed is None:
        raise CohortError(
            f"{path}: FLIRT's matrix counts from its two images; they must be named as 'moving' "
            "(flirt -in) and 'fixed' (flirt -ref)"
        )
    _require_invertible(path, plain)
    return ras_of_fsl(plain, read_grid(moving), read_grid(fixed))


def _require_invertible(path: Path, matrix: np.ndarray) -> np.ndarray:
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise CohortError(f"{path}: its matrix can't be inverted, so it isn't a transform")
    return matrix


def _is_text(path: Path) -> bool:
    """Whether a ``.mat`` is text: MATLAB's files begin with binary numbers."""
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    check_file(path)
    with path.open("rb") as file:
        start = file.read(512)
    if not start or re.search(rb"[^\t\n\r\x20-\x7e]", start):
        return False
    return bool(re.search(rb"^Transform:", start, re.MULTILINE) or re.match(rb"[-+.\d\s#]", start))


def _read_text(path: Path) -> str:
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    try:
        text = read_text(path, _LONGEST, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: can't be read: not the text of a transform") from error
    if "\0" in text:
        raise CohortError(f"{path}: can't be read: not the text of a transform")
    return text
