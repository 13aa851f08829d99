"""``transforms.json``: the transform of each section of a registered stack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import CohortError
from scripts.runtime.input_files import read_json
from scripts.settings.stack import UNITS
from scripts.stack.cropping import CropBox

__all__ = ["STATUSES", "PlacedSection", "StackTransforms", "read_transforms"]

FORMAT = "tract_atlas_registered_stack/1"
_FARTHEST = 1e9  # pixels
STATUSES = ("reference", "registered", "damaged", "held", "skipped")
_CONVENTION = (
    "composed: (row, column, 1) of the uncropped registered grid to a pixel of the section; "
    "pairwise: of the section before to a pixel of this one; pixels count from 0 at their centres"
)


@dataclass(frozen=True)
class PlacedSection:
    """A section and its place.

    Attributes:
        index: in the stack.
        name: of the section.
        status: one of `STATUSES`.
        pairwise: ``(3, 3)``, from the section before.
        composed: ``(3, 3)``, from the registered grid.
        loss: of the pair with the section before; None where it wasn't measured.
        steps: of that pair, by level.
        correlation_before: of that pair, unregistered.
        correlation: of that pair, after its registration.
        residual: pixels, weighted r.m.s. disagreement of the section's pairs with the solution.
    """

    index: int
    name: str
    status: str
    pairwise: np.ndarray
    composed: np.ndarray
    loss: float | None = None
    steps: tuple[int, ...] = ()
    correlation_before: float | None = None
    correlation: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class StackTransforms:
    """The transforms of a stack.

    Attributes:
        spacing: z, y, x.
        unit: of it.
        shape: rows and columns of the registered grid, before the crop.
        crop: what was kept of it.
        reference: index of the section whose frame was kept.
        family: of the transforms.
        order: index in the input of each section.
        sections: in order.
        wander: distance of the slow part from the unregistered sections, pixels.
        axis: along which a NIfTI input was cut.
        about: everything else in the file.
    """

    spacing: tuple[float, float, float]
    unit: str
    shape: tuple[int, int]
    crop: CropBox
    reference: int
    family: str
    order: tuple[int, ...]
    sections: tuple[PlacedSection, ...]
    wander: Mapping[str, float]
    axis: int = 2
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matrices(self) -> np.ndarray:
        """``(sections, 3, 3)``, composed."""
        return np.stack([section.composed for section in self.sections])

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        sections = []
        for section in self.sections:
            values = asdict(section)
            values["pairwise"] = section.pairwise.tolist()
            values["composed"] = section.composed.tolist()
            values["steps"] = list(section.steps)
            sections.append({key: _finite(value) for key, value in values.items()})
        return {
            "format": FORMAT,
            "convention": _CONVENTION,
            "spacing": list(self.spacing),
            "unit": self.unit,
            "shape": [len(self.sections), *self.shape],
            "crop_box": [self.crop.top, self.crop.bottom, self.crop.left, self.crop.right],
            "reference": self.reference,
            "family": self.family,
            "axis": self.axis,
            "order": list(self.order),
            "wander": dict(self.wander),
            **self.about,
            "sections": sections,
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", "utf-8")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_transforms(path: str | Path) -> StackTransforms:
    """Read the file.

    Raises:
        CohortError: it can't be read, or is none.
    """
    file = Path(path)
    if not file.exists():
        raise CohortError(f"{file}: does not exist")
    try:
        content = read_json(file)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        sections = []
        for index, one in enumerate(content["sections"]):
            if one["index"] != index or one["status"] not in STATUSES:
                raise ValueError(f"section {index} has another index, or an unknown status")
            sections.append(
                PlacedSection(
                    index,
                    str(one["name"]),
                    one["status"],
                    _matrix(one["pairwise"]),
                    _matrix(one["composed"]),
                )
            )
        z, y, x = (float(value) for value in content["spacing"])
        count, rows, columns = (int(n) for n in content["shape"])
        crop = CropBox(*(int(n) for n in content["crop_box"]))
        if count != len(sections) or count < 1 or content["unit"] not in UNITS:
            raise ValueError("its sections, shape and unit do not fit together")
        if not (0 <= crop.top < crop.bottom <= rows and 0 <= crop.left < crop.right <= columns):
            raise ValueError("its crop box is outside of its shape")
        if not all(0 < one < np.inf for one in (x, y, z)):
            raise ValueError("its spacing is not positive")
        order = tuple(int(n) for n in content["order"])
        if sorted(order) != list(range(count)):
            raise ValueError("its order is not a permutation")
        wander = content["wander"]
        if not all(_is_finite(wander[key]) for key in ("rms", "largest", "section")):
            raise ValueError("its wander is not of finite numbers")
        return StackTransforms(
            (z, y, x), content["unit"], (rows, columns), crop, int(content["reference"]),
            str(content["family"]), order, tuple(sections), dict(wander),
            int(content.get("axis", 2)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CohortError(
            f"{file}: is not a transforms.json of a registered stack: {error}"
        ) from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _matrix(values: Any) -> np.ndarray:
    matrix = np.array(values, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError("a matrix is not 3x3 or not finite")
    if np.abs(matrix).max() > _FARTHEST:
        raise ValueError(f"a matrix has {np.abs(matrix).max():.3g}, beyond any image")
    if abs(np.linalg.det(matrix)) < 1e-12 or not np.array_equal(matrix[2], (0.0, 0.0, 1.0)):
        raise ValueError("a matrix can't be inverted, or is not an affine one")
    return matrix
