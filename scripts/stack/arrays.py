"""Sections from Python, as a file that the jobs read: an array, or a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.runtime.storage import publish_folder
from scripts.settings.stack import UNITS, unit_name
from scripts.stack.ome_zarr import OmeZarr

__all__ = ["stack_input", "write_sections"]


def stack_input(
    sections: str | Path | np.ndarray,
    output_dir: str | Path,
    spacing: Sequence[float] | None,
    unit: str,
    settings: Mapping[str, Any] | None,
) -> tuple[str, dict[str, Any]]:
    """The path of a stack, and the settings of its job.

    Args:
        sections: a path, or an array, which is written to ``<output_dir>/stack/sections.zarr``.
        output_dir: destination of the job.
        spacing: z, y, x; needed by an array, overrides that of a file.
        unit: of the spacing.
        settings: of the job.

    Raises:
        StorageError: the folder contains something else, or can't be written.
        ValueError: the array has no spacing, or is not a stack of sections.
    """
    block = dict(settings or {})
    if spacing is not None:
        block |= {"spacing": [float(one) for one in spacing], "unit": unit}
    if isinstance(sections, str | Path):
        return str(sections), block
    if spacing is None:
        raise ValueError("spacing of sections = None: an array needs its z, y, x")
    written = write_sections(Path(output_dir) / "stack", np.asarray(sections), spacing, unit)
    return str(written), block


def write_sections(
    folder: str | Path, sections: np.ndarray, spacing: Sequence[float], unit: str
) -> Path:
    """Write an array of sections as OME-Zarr, complete or not at all.

    Args:
        folder: is created, or replaced if this bundle wrote it.
        sections: ``(sections, rows, columns)``, or with 3 or 4 colours as a last axis.
        spacing: z, y, x.
        unit: of the spacing, such as ``micrometer``.

    Returns:
        ``<folder>/sections.zarr``.

    Raises:
        StorageError: the folder contains something else, or can't be written.
        ValueError: the array is not a stack of sections.
    """
    colours = sections.shape[3] if sections.ndim == 4 else 0
    if sections.ndim not in (3, 4) or (colours and colours not in (3, 4)):
        raise ValueError(
            f"sections of shape {sections.shape}: must be (sections, rows, columns), with 3 or 4 "
            "colours at most as a last axis"
        )
    if sections.dtype.kind not in "biuf":
        raise ValueError(f"sections of type {sections.dtype}: must be real numbers")
    values = sections.astype(np.uint8) if sections.dtype == bool else sections
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing = {tuple(spacing)}: must be z, y, x, each above 0")
    try:
        name = unit_name(unit)
    except ValueError:
        raise ValueError(f"unit = {unit!r}: must be one of {', '.join(UNITS)}") from None
    z, y, x = (float(one) for one in spacing)
    count, rows, columns = values.shape[:3]
    with publish_folder(folder) as staging:
        file = OmeZarr(staging / "sections.zarr", (count, rows, columns), colours, values.dtype)
        file.create("sections", name, (z, y, x), (0.0, 0.0, 0.0), {})
        for index in range(count):
            file.write(index, values[index])
    return Path(folder) / "sections.zarr"
