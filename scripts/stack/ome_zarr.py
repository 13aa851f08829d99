"""A stack written as OME-Zarr 0.5, section by section, with one writer a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.stack.libraries import require
from scripts.stack.ome_metadata import multiscale_attributes

__all__ = ["OmeZarr"]

_CHUNK = 512  # pixels a side; a chunk contains one section, so that it has one writer
_COARSEST = 256  # pixels: halving ends where no side is longer


@dataclass(frozen=True)
class OmeZarr:
    """The file of a stack: level 0 unchanged, then rows and columns halved level by level.

    Sections stay separate in all levels: no chunk contains two, so that writing a section needs
    no lock, and memory does not grow with the number of sections.

    Attributes:
        path: of the group.
        shape: sections, rows, columns.
        channels: colours, 0 for one value per pixel.
        dtype: of the values.
        labels: whether levels take every other pixel instead of means.
    """

    path: Path
    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype
    labels: bool = False

    @property
    def levels(self) -> int:
        """How many there are."""
        longest, count = max(self.shape[1:]), 1
        while longest > _COARSEST:
            longest, count = -(-longest // 2), count + 1
        return count

    def create(
        self,
        name: str,
        unit: str,
        spacing: tuple[float, float, float],
        translation: tuple[float, float, float],
        attributes: Mapping[str, Any],
    ) -> None:
        """Make the group and its empty arrays.

        Args:
            name: of the image.
            unit: of spacing and translation.
            spacing: z, y, x.
            translation: z, y, x of the first pixel's centre.
            attributes: of level 0.
        """
        zarr = require("zarr")
        group = zarr.create_group(str(self.path), zarr_format=3)
        group.attrs["ome"] = multiscale_attributes(
            name, unit, spacing, translation, self.levels, bool(self.channels), self.labels
        )
        sections, rows, columns = self.shape
        lead = (self.channels,) if self.channels else ()
        axes = (("c",) if self.channels else ()) + ("z", "y", "x")
        for level in range(self.levels):
            array = group.create_array(
                str(level),
                shape=(*lead, sections, rows, columns),
                chunks=(*lead, 1, min(rows, _CHUNK), min(columns, _CHUNK)),
                dtype=self.dtype,
                fill_value=0,
                dimension_names=axes,
            )
            if level == 0:
                array.attrs.update(dict(attributes))
            rows, columns = -(-rows // 2), -(-columns // 2)

    def write(self, index: int, section: np.ndarray) -> None:
        """Write a section into every level.

        Args:
            index: of the section.
            section: ``(rows, columns[, channels])``.
        """
        zarr = require("zarr")
        for level in range(self.levels):
            array = zarr.open_array(str(self.path / str(level)), mode="r+")
            if self.channels:
                array[:, index] = np.moveaxis(section, -1, 0)
            else:
                array[index] = section
            section = section[::2, ::2] if self.labels else _halved(section)

    def read(self, index: int) -> np.ndarray:
        """A section of level 0, as it was written."""
        array = require("zarr").open_array(str(self.path / "0"), mode="r")
        if self.channels:
            return np.moveaxis(np.asarray(array[:, index]), 0, -1)
        return np.asarray(array[index])


def _halved(section: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; at an odd border of the remaining ones."""
    rows, columns = section.shape[:2]
    edges = [(0, rows % 2), (0, columns % 2), *[(0, 0)] * (section.ndim - 2)]
    padded = np.pad(section, edges, mode="edge")
    blocks = padded.reshape(
        padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, *padded.shape[2:]
    ).astype(np.float64)
    means = blocks.mean(axis=(1, 3))
    return (np.rint(means) if section.dtype.kind in "iu" else means).astype(section.dtype)
