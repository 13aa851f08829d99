"""The position of an image's voxels in the world: one rule for every file that is read.

A NIfTI header can record the position twice (sform and qform) or not at all, in one of several
units, and tools differ if it is unclear. The rule here:

- the sform is used, else the qform; if both are set and disagree, the sform is used with a warning,
  because ITK may use the qform;
- metres and micrometres are converted to millimetres, size and position alike, with a warning,
  because ITK converts the size alone and nibabel and FSL neither;
- without either form (both codes 0) the voxels are placed as ITK places them (the first voxel at
  the origin, indices increasing to left, posterior and superior), with a warning; jobs that need a
  known position, such as a count of streamlines on this grid, refuse such a file;
- images whose axes are not at right angles can be read, but no result is written on their grid,
  because neither a qform nor ITK can represent it.

Headers from here have the same position in both forms, so that nibabel and ITK read files that are
written with them in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.runtime.input_files import FileError

__all__ = ["Placement", "placement_of", "require_right_angles", "usable_affine"]

_VOXEL_SIZES = (1e-6, 1e6)  # mm: beyond them float32 displacements lose their meaning
_LARGEST_CONVERTED = 100.0  # mm: a unit of metres that gives larger voxels is a slip
_TO_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI's codes of metre, millimetre, micrometre
_UNIT = {1: "metre", 3: "micrometre"}
_AGREE = 1e-2  # of a voxel at a corner; a qform's quaternion is float32
_SKEW = 1e-2  # of a voxel at a corner, that axes at right angles may be off
_NORM = 1e-3  # by which a quaternion's norm may be over 1

NO_FORM = (
    "its header records no orientation (qform_code and sform_code are 0), so that left and right "
    "are a guess: it is read as ITK and ANTs read it, nibabel, FSL and MRtrix read it otherwise; "
    "write the true orientation into the file"
)


@dataclass(frozen=True, eq=False)
class Placement:
    """The position of voxels, and a header that records it.

    Attributes:
        affine: ``(4, 4)``, voxel indices to RAS mm.
        header: NIfTI header in mm whose forms agree.
        remarks: warnings about the header.
        known: whether the file records the position.
    """

    affine: np.ndarray
    header: Any
    remarks: tuple[str, ...] = ()
    known: bool = True


def placement_of(path: Path, header: Any, shape: tuple[int, ...]) -> Placement:
    """Apply the rule of this module to a NIfTI header.

    Args:
        path: the file, for messages.
        header: nibabel's `Nifti1Header` or `Nifti2Header`.
        shape: of the image.

    Raises:
        FileError: a form is damaged, or the unit is implausible.
    """
    remarks: list[str] = []
    scale = _scale(path, header, remarks)
    sform, qform = _sform(header), _qform(path, header, remarks)
    known = sform is not None or qform is not None
    if sform is not None:
        affine = sform
        if qform is not None and _apart(sform, qform, shape) > _AGREE:
            remarks.append(
                "its sform and qform disagree; the sform is used, as by nibabel and MRtrix (ITK "
                "may use the qform): mend the file if the qform is right"
            )
    elif qform is not None:
        affine = qform
    else:
        affine = _without_form(header)
        remarks.append(NO_FORM)
    affine = usable_affine(path, np.array([[scale], [scale], [scale], [1.0]]) * affine)
    return Placement(affine, _clear_header(header, affine, shape), tuple(remarks), known)


def usable_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """An affine ``(4, 4)`` in float64.

    Raises:
        FileError: it can't be inverted, or its voxels have no plausible size.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all() or not np.isfinite(np.linalg.cond(affine[:3, :3])):
        raise FileError(path, "has an affine that can't be inverted")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < _VOXEL_SIZES[0] or sizes.max() > _VOXEL_SIZES[1]:
        raise FileError(
            path,
            f"has voxels of {' x '.join(f'{size:g}' for size in sizes)} mm; they must be between "
            f"{_VOXEL_SIZES[0]:g} and {_VOXEL_SIZES[1]:g}",
        )
    return affine


def require_right_angles(path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse a grid on which results can't be written.

    Raises:
        FileError: the axes are not at right angles.
    """
    if _apart(affine, _rectangular(affine), shape) <= _SKEW:
        return
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (affine[:3, :3] / sizes).T @ (affine[:3, :3] / sizes)
    angle = float(np.degrees(np.arcsin(min(1.0, np.abs(cosines - np.eye(3)).max()))))
    raise FileError(
        path,
        f"has a sheared grid (axes {angle:.2g} degrees off right angles), which ITK and a qform "
        "can't hold; resample it onto a rectangular grid first, such as with warp, mrgrid or flirt",
    )


def _scale(path: Path, header: Any, remarks: list[str]) -> float:
    """Millimetres per unit of the header; an unknown unit is read as mm, as by other tools."""
    code = int(header["xyzt_units"]) & 7
    scale = _TO_MM.get(code, 1.0)
    if scale == 1.0:
        return scale
    largest = float(np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64)).max()) * scale
    if largest > _LARGEST_CONVERTED:
        raise FileError(
            path,
            f"says that its unit is the {_UNIT[code]}, so that a voxel has {largest:g} mm; if mm "
            "are meant, set the header's xyzt_units to mm",
        )
    remarks.append(
        f"its header's unit is the {_UNIT[code]}; it is converted to mm (nibabel, FSL and MRtrix "
        "ignore the unit, ITK ignores it in the origin: convert the file if they use it as well)"
    )
    return scale


def _sform(header: Any) -> np.ndarray | None:
    if int(header["sform_code"]) <= 0:
        return None
    rows = [np.asarray(header[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"]
    return np.array([*rows, [0.0, 0.0, 0.0, 1.0]])


def _qform(path: Path, header: Any, remarks: list[str]) -> np.ndarray | None:
    """The qform; a damaged one is an error only if there is no sform."""
    if int(header["qform_code"]) <= 0:
        return None
    b, c, d = (float(header[f"quatern_{name}"]) for name in "bcd")
    square = 1.0 - (b * b + c * c + d * d)
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    damage = ""
    if not np.isfinite(square) or square < -_NORM:
        damage = f"quaternion ({b:g}, {c:g}, {d:g})"
    elif not (np.isfinite(sizes).all() and sizes.min() > 0):
        damage = f"voxel sizes ({', '.join(f'{size:g}' for size in sizes)})"
    if damage:
        if int(header["sform_code"]) <= 0:
            raise FileError(path, f"has a damaged qform ({damage}) and no sform; write it anew")
        remarks.append(f"its qform is damaged ({damage}); its sform is used")
        return None
    if square < 1e-7:  # half a turn, whose norm was rounded
        norm = np.sqrt(b * b + c * c + d * d)
        b, c, d, square = b / norm, c / norm, d / norm, 0.0
    turn = nib.quaternions.quat2mat([np.sqrt(square), b, c, d])
    sizes[2] *= -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = turn * sizes
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _without_form(header: Any) -> np.ndarray:
    """ITK's reading of a file without forms: indices along its axes L, P, S from the origin."""
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    sizes[~(sizes > 0)] = 1.0
    return np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])


def _clear_header(header: Any, affine: np.ndarray, shape: tuple[int, ...]) -> Any:
    """A copy in mm whose forms both give ``affine``."""
    clear = header.copy()
    codes = int(header["sform_code"]), int(header["qform_code"])
    sform, qform = (max(code, 0) for code in codes)
    # ITK takes a matrix that is a little off right angles only with a qform beside it.
    rounded = _apart(affine, _rectangular(affine), shape) > 1e-6
    if not sform and not qform:
        sform = qform = 1
    elif rounded and not qform:
        qform = sform
    clear.set_qform(affine, code=qform, strip_shears=True)
    clear.set_sform(affine, code=sform)
    clear.set_xyzt_units(xyz="mm")
    return clear


def _rectangular(affine: np.ndarray) -> np.ndarray:
    """The nearest affine of the same voxel sizes whose axes are at right angles."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    nearest = affine.copy()
    nearest[:3, :3] = left @ right * sizes
    return nearest


def _apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance between corresponding corners, voxels."""
    ends = [max(int(n) - 1, 1) for n in (*shape[:3], 1, 1, 1)[:3]]
    corners = np.array([[x, y, z, 1.0] for x in (0, ends[0]) for y in (0, ends[1])
                        for z in (0, ends[2])]).T  # fmt: skip
    with np.errstate(all="ignore"):
        gap = np.linalg.norm(((one - other) @ corners)[:3], axis=0).max()
        size = np.linalg.norm(one[:3, :3], axis=0).min()
    return float(gap / size) if size > 0 and np.isfinite(gap) else float("inf")
