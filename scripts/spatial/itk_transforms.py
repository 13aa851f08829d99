"""ITK's transforms as files: text, MATLAB v4 and HDF5; affines, fields, and composites of them.

All map points of the wanted image to points of the resampled one, LPS mm. Here they become maps in
RAS mm. Composites apply their last transform first, as ITK does.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from scripts.errors import CohortError
from scripts.runtime.input_files import check_file, check_fits, say
from scripts.spatial.grid import Grid
from scripts.spatial.orientation import usable_affine
from scripts.spatial.transforms import TO_LPS, AffineTransform, FieldTransform, Transform

__all__ = ["itk_of_hdf5", "itk_of_matlab", "itk_of_text"]

logger = logging.getLogger(__name__)

LONGEST = 1 << 16  # bytes; unpacked, MATLAB's files have a thousand times as many at most
_MOST = 64  # transforms of a composite

Numbers = np.ndarray


def itk_of_text(path: Path, text: str) -> AffineTransform:
    """ITK's text (``.txt``, ``.tfm``): one affine transform, or a composite of affine transforms.

    Raises:
        CohortError: the file contains another transform.
    """
    fields = re.findall(r"^(Transform|Parameters|FixedParameters):(.*)$", text, re.MULTILINE)
    kinds = [value.strip() for name, value in fields if name == "Transform"]
    composite = bool(kinds) and _is_composite(kinds[0])
    fields = fields[1:] if composite else fields
    expected = ["Transform", "Parameters", "FixedParameters"]
    count = len(fields) // 3
    if not fields or [name for name, _ in fields] != expected * count or count > _MOST:
        raise CohortError(
            f"{path}: contains {', '.join(kinds) or 'no transform'}; must be one ITK transform, "
            "or one composite, with Transform:, Parameters: and FixedParameters:, or a 4x4 matrix"
        )
    if count > 1 and not composite:
        raise CohortError(
            f"{path}: contains {', '.join(kinds)} without a CompositeTransform that gives their "
            "order; must be one ITK transform, or a composite"
        )
    parts = []
    for first in range(0, len(fields), 3):
        (_, kind), *numbers = fields[first : first + 3]
        try:
            parameters, fixed = (np.array(one.split(), dtype=np.float64) for _, one in numbers)
        except ValueError as error:
            raise CohortError(f"{path}: contains a parameter that isn't a number") from error
        parts.append(_affine(path, kind.strip(), parameters, fixed))
    return AffineTransform(reduce(np.matmul, parts))


def itk_of_matlab(path: Path) -> AffineTransform:
    """ITK's ``.mat`` (MATLAB v4), such as ANTs' ``0GenericAffine.mat``.

    Raises:
        CohortError: the file doesn't contain exactly one affine transform.
    """
    size = check_file(path).st_size
    if size > LONGEST:
        raise CohortError(
            f"{path}: can't be read: has {size} bytes, an affine has at most {LONGEST}"
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
        names = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise CohortError(f"{path}: has {names}, not one ITK transform and its centre ('fixed')")
    try:
        parameters, fixed = (
            np.asarray(content[name], dtype=np.float64).ravel() for name in (kinds[0], "fixed")
        )
    except (TypeError, ValueError) as error:
        raise CohortError(f"{path}: {kinds[0]} contains an entry that isn't a number") from error
    kind = kinds[0]
    if _is_composite(kind):
        if (len(parameters), len(fixed)) != (12, 3):
            raise CohortError(
                f"{path}: contains a {kind}; MATLAB files store the numbers of its parts without "
                "their kinds; save it as .h5 or .tfm"
            )
        # ITK writes only the parts that were optimised, so others may be missing from the file.
        logger.warning(
            "%s: contains a %s, which is read as its only affine; if it had other parts, MATLAB's "
            "format has lost them: save it as .h5 or .tfm",
            path, kind,
        )  # fmt: skip
        kind = "AffineTransform_double_3_3"
    return AffineTransform(_affine(path, kind, parameters, fixed))


def itk_of_hdf5(path: Path) -> Transform:
    """ITK's HDF5 (``.h5``), as ANTs and fmriprep write composites of affines and fields.

    Raises:
        CohortError: the file can't be read, or contains an unknown kind of transform.
    """
    if not os.path.lexists(path):
        raise CohortError(f"{path}: no such file")
    check_fits(path, 4 * check_file(path).st_size)  # packed fields, and a copy
    import h5py

    try:
        with h5py.File(path, "r") as file:
            groups = _within(file, "TransformGroup")
            names = sorted(groups, key=int)
            if not names or len(names) > _MOST:
                raise ValueError(f"it contains {len(names)} transforms")
            kinds = [_kind(_within(groups, name)) for name in names]
            composite = _is_composite(kinds[0])
            parts = list(zip(names, kinds, strict=True))[int(composite) :]
            if not parts or (len(parts) > 1 and not composite):
                raise ValueError(f"it contains {', '.join(kinds)} without their order")
            transforms = [_of_group(path, kind, _within(groups, name)) for name, kind in parts]
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        raise CohortError(f"{path}: can't be read as ITK's HDF5: {say(error)}") from error
    return reduce(lambda outer, inner: outer @ inner, transforms)


def _within(group: Any, name: str) -> Any:
    """An entry of a group; one that lies in another file is refused."""
    result = group[name]
    elsewhere = getattr(result, "external", None) or getattr(result, "is_virtual", False)
    if elsewhere or result.file.id != group.file.id:
        raise ValueError(f"{name} is in another file, which isn't followed")
    return result


def _kind(group: Any) -> str:
    value = _within(group, "TransformType")[()]
    text = value[0] if np.ndim(value) else value
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


def _of_group(path: Path, kind: str, group: Any) -> Transform:
    def numbers(name: str) -> Any:
        # Up to ITK 4 the names had a letter less.
        known = name if name in group else name.replace("Trans", "Tran", 1)
        result = _within(group, known)
        if result.ndim != 1 or result.dtype.kind != "f":
            raise ValueError(f"{name} is not a list of numbers")
        return result

    fixed = np.asarray(numbers("TransformFixedParameters"), dtype=np.float64)
    parameters = numbers("TransformParameters")
    if kind.split("_")[0] == "DisplacementFieldTransform":
        return _field(path, kind, parameters, fixed)
    if len(parameters) > 64:
        raise CohortError(f"{path}: contains a {kind}; {_KNOWN}")
    return AffineTransform(_affine(path, kind, np.asarray(parameters, np.float64), fixed))


def _field(path: Path, kind: str, parameters: Any, fixed: Numbers) -> FieldTransform:
    """Fixed parameters: size, origin, spacing, direction; parameters: vectors, x fastest."""
    d = int(kind[-1]) if kind[-1].isdigit() else 3
    if d != 3 or len(fixed) != 18:
        raise CohortError(f"{path}: contains a {kind} of {len(fixed)} fixed parameters, not 18")
    size, origin, spacing, direction = fixed[:3], fixed[3:6], fixed[6:9], fixed[9:].reshape(3, 3)
    if (size != np.round(size)).any() or size.min() < 1 or math.prod(size) * 3 != len(parameters):
        raise CohortError(
            f"{path}: its field claims {' x '.join(f'{n:g}' for n in size)} voxels and holds "
            f"{len(parameters)} numbers"
        )
    shape = tuple(int(n) for n in size)
    check_fits(path, 2 * 8 * len(parameters))
    vectors = np.asarray(parameters, dtype=np.float64).reshape(*shape[::-1], 3)
    if not np.isfinite(vectors).all():
        raise CohortError(f"{path}: its field is not finite everywhere")
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = direction * spacing, origin
    affine = usable_affine(path, TO_LPS @ lps)
    ras = vectors.transpose(3, 2, 1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units(xyz="mm")
    return FieldTransform(np.ascontiguousarray(ras), Grid(shape, affine, header))


# ---------------------------------------------------------------------------------------------
# Kinds of affines
# ---------------------------------------------------------------------------------------------


def _is_composite(kind: str) -> bool:
    return kind.split("_")[0] == "CompositeTransform"


def _turn(axis: int, angle: float) -> Numbers:
    c, s = math.cos(angle), math.sin(angle)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = c
    turn[first, second], turn[second, first] = -s, s
    return turn


def _versor(v: Numbers) -> Numbers:
    square = float(v @ v)
    if square > 1 + 1e-6:
        raise ValueError(f"its versor is longer than 1 ({math.sqrt(square):g})")
    return np.asarray(nib.quaternions.quat2mat([math.sqrt(max(0.0, 1 - square)), *v]))


def _euler(p: Numbers, fixed: Numbers) -> Numbers:
    """Z X Y, unless a fourth fixed parameter asks for Z Y X."""
    x, y, z = (_turn(axis, float(p[axis])) for axis in range(3))
    return z @ y @ x if len(fixed) == 4 and fixed[3] else z @ x @ y


def _scaled_versor(p: Numbers, skew: Numbers) -> Numbers:
    """ITK adds scales to the rotation: that is how its ScaleVersor transforms are defined."""
    matrix = _versor(p[:3]) + np.diag(p[6:9] - 1)
    matrix[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]] += skew
    return matrix


def _plane(angle: float, scale: float = 1.0) -> Numbers:
    c, s = math.cos(angle), math.sin(angle)
    return scale * np.array([[c, -s], [s, c]])


_Rule = tuple[int, int, Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]]
"""Dimensions, number of parameters, and matrix and translation by parameters and fixed ones."""
_RULES: dict[str, tuple[_Rule, ...]] = {
    **dict.fromkeys(
        ("AffineTransform", "MatrixOffsetTransformBase"),
        (
            (3, 12, lambda p, f: (p[:9].reshape(3, 3), p[9:])),
            (2, 6, lambda p, f: (p[:4].reshape(2, 2), p[4:])),
        ),
    ),
    "IdentityTransform": (
        (3, 0, lambda p, f: (np.eye(3), np.zeros(3))),
        (2, 0, lambda p, f: (np.eye(2), np.zeros(2))),
    ),
    "TranslationTransform": (
        (3, 3, lambda p, f: (np.eye(3), p)),
        (2, 2, lambda p, f: (np.eye(2), p)),
    ),
    "ScaleTransform": (
        (3, 3, lambda p, f: (np.diag(p), np.zeros(3))),
        (2, 2, lambda p, f: (np.diag(p), np.zeros(2))),
    ),
    "Euler3DTransform": ((3, 6, lambda p, f: (_euler(p, f), p[3:])),),
    "VersorTransform": ((3, 3, lambda p, f: (_versor(p), np.zeros(3))),),
    "VersorRigid3DTransform": ((3, 6, lambda p, f: (_versor(p[:3]), p[3:])),),
    "Similarity3DTransform": ((3, 7, lambda p, f: (p[6] * _versor(p[:3]), p[3:6])),),
    "ScaleVersor3DTransform": ((3, 9, lambda p, f: (_scaled_versor(p, np.zeros(6)), p[3:6])),),
    "ScaleSkewVersor3DTransform": ((3, 15, lambda p, f: (_scaled_versor(p, p[9:]), p[3:6])),),
    **dict.fromkeys(
        ("Euler2DTransform", "Rigid2DTransform"),
        ((2, 3, lambda p, f: (_plane(p[0]), p[1:])),),
    ),
    "Similarity2DTransform": ((2, 4, lambda p, f: (_plane(p[1], p[0]), p[2:])),),
}
_KNOWN = (
    f"must be one of {', '.join(_RULES)}, a composite of such, or (in .h5) a "
    "DisplacementFieldTransform"
)


def _affine(path: Path, kind: str, parameters: Numbers, fixed: Numbers) -> Numbers:
    """The matrix ``(4, 4)``, RAS mm: ``y = M (x - c) + t + c`` with c the fixed parameters."""
    words = kind.split("_")
    d = int(words[-1]) if words[-1].isdigit() else 3
    for dims, count, rule in _RULES.get(words[0], ()):
        if dims != d or len(parameters) != count:
            continue
        if len(fixed) not in ((0, d, d + 1) if words[0] == "Euler3DTransform" else (0, d)):
            continue
        centre = fixed[:d] if len(fixed) else np.zeros(d)
        try:
            matrix, move = rule(parameters, fixed)
        except ValueError as error:
            raise CohortError(f"{path}: {error}") from error
        lps = np.eye(4)
        lps[:d, :d] = matrix
        lps[:d, 3] = move + centre - matrix @ centre
        signs = np.diag(TO_LPS)
        return np.asarray(signs[:, None] * lps * signs)  # no sums: infinities stay what they are
    raise CohortError(
        f"{path}: contains {kind} with {len(parameters)} parameters and {len(fixed)} fixed ones; "
        f"{_KNOWN}"
    )
