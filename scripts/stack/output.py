"""The output of a registered stack, written into one folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.errors import StorageError
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_replaceable, check_space
from scripts.settings.stack import UNITS, StackSettings
from scripts.spatial.transform_files import transform_names, write_itk_affine
from scripts.spatial.transforms import TO_LPS
from scripts.stack.libraries import require
from scripts.stack.ome_zarr import OmeZarr
from scripts.stack.resampling import resample_section
from scripts.stack.source import Inspection, SectionFacts, Stack
from scripts.stack.transforms import StackTransforms
from scripts.stack.workers import Workers

__all__ = ["OUTPUT_FOLDER", "Cuts", "StackOutput", "check_apart", "check_room"]

logger = logging.getLogger(__name__)

OUTPUT_FOLDER = "registered_stack"


@dataclass(frozen=True)
class Cuts:
    """Two lines of a section, before and after: two cuts across the stack are made of them.

    Attributes:
        before: the middle row and the middle column, of the section as given.
        after: the same of the registered section.
    """

    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]


def check_apart(output_dir: Path, *inputs: str | Path | None) -> None:
    """Refuse to write over what is read, or over what this bundle did not publish.

    Raises:
        StorageError: an input is in the folder that is replaced, or contains it; or the folder
            contains something else.
    """
    target = (output_dir / OUTPUT_FOLDER).resolve()
    for given in inputs:
        if given is None:
            continue
        place = Path(given).resolve()
        if place == target or target in place.parents or place in target.parents:
            if place.is_dir() and place in target.parents and not _is_stack(place):
                continue
            raise StorageError(
                f"{target}: would be written over its input {place}; choose another output_dir"
            )
    check_replaceable(target)


def _is_stack(folder: Path) -> bool:
    """Whether writing below a folder would change the stack in it."""
    return any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))


def check_room(output_dir: Path, stack: Stack, transforms: StackTransforms, formats: Any) -> None:
    """Check that the disk has enough room.

    Raises:
        StorageError: with the arithmetic.
    """
    values = len(stack) * int(np.prod(transforms.crop.shape)) * max(1, stack.channels)
    size = values * stack.dtype.itemsize
    needs = {"registered.zarr": size * 4 // 3}
    if "nifti" in formats:
        needs["registered.nii.gz"] = 2 * size
    if "tiff" in formats:
        needs["sections"] = size
    check_space({output_dir: needs})


class StackOutput:
    """Writes the sections of a stack through their transforms.

    Args:
        folder: of a publication under way.
        inspection: of the stack.
        transforms: of its sections.
        settings: interpolation, fill, formats.
    """

    def __init__(
        self,
        folder: Path,
        inspection: Inspection,
        transforms: StackTransforms,
        settings: StackSettings,
    ) -> None:
        self.folder, self.inspection, self.transforms = folder, inspection, transforms
        self.settings = settings
        self.stack = inspection.stack
        self.formats = list(settings.formats)
        if self.stack.reader.affine is not None and "nifti" not in self.formats:
            self.formats.append("nifti")
        self.zarr = OmeZarr(
            folder / "registered.zarr",
            (len(self.stack), *transforms.crop.shape),
            self.stack.channels,
            self.stack.dtype,
            settings.interpolation == "nearest",
        )

    def write(self, workers: Workers, attributes: Mapping[str, Any]) -> list[Cuts]:
        """Write images, transforms and ``transforms.json``.

        Args:
            workers: that resample and write, a section a call.
            attributes: of the zarr's level 0.

        Returns:
            the cuts of each section.
        """
        transforms = self.transforms
        _, y, x = transforms.spacing
        translation = (0.0, transforms.crop.top * y, transforms.crop.left * x)
        self.zarr.create("registered", transforms.unit, transforms.spacing, translation, attributes)
        if "tiff" in self.formats:
            (self.folder / "sections").mkdir()
        calls = [
            (self, index, self.inspection.facts[index], transforms.sections[index].composed)
            for index in range(len(self.stack))
        ]
        cuts = []
        with progress_bar(len(calls), "sections") as bar:
            for one in workers.map(_write_section, calls):
                cuts.append(one)
                bar.update()
        if "nifti" in self.formats:
            self._write_nifti()
        if "zarr" not in self.formats:
            shutil.rmtree(self.zarr.path)
        transforms.write(self.folder / "transforms.json")
        self._write_transform_files()
        return cuts

    def fill(self, facts: SectionFacts) -> tuple[float, ...]:
        """Value of each channel where a section has none."""
        if self.settings.fill == "border":
            return facts.border
        return (float(self.settings.fill),) * max(1, self.stack.channels)

    def __getstate__(self) -> dict[str, Any]:
        """Without the facts of all sections: a call receives those of its section."""
        inspection = Inspection(self.inspection.stack, ())
        transforms = replace(self.transforms, sections=())
        return {**self.__dict__, "inspection": inspection, "transforms": transforms}

    # -- NIfTI -----------------------------------------------------------------------------

    def _affine(self) -> np.ndarray:
        """``(4, 4)``, voxel of the uncropped volume to RAS mm."""
        if self.stack.reader.affine is not None:
            return self.stack.reader.affine
        z, y, x = np.array(self.transforms.spacing) * UNITS[self.transforms.unit]
        return np.diag([x, y, z, 1.0])

    def _axes(self) -> tuple[int, int, int]:
        """Axes of the volume along which rows, columns and sections count."""
        along = self.transforms.axis if self.stack.reader.affine is not None else 2
        columns, rows = (axis for axis in range(3) if axis != along)
        return rows, columns, along

    def _write_nifti(self) -> None:
        rows, columns, along = self._axes()
        shape = [0, 0, 0]
        shape[rows], shape[columns] = self.transforms.crop.shape
        shape[along] = len(self.stack)
        whole = (*shape, self.stack.channels) if self.stack.channels else tuple(shape)
        dtype = np.dtype(np.float32) if self.stack.dtype == np.float16 else self.stack.dtype
        raw = self.folder / ".registered.raw"
        try:
            volume = np.memmap(raw, dtype=dtype, mode="w+", shape=whole, order="F")
            for index in range(len(self.stack)):
                place: list[Any] = [slice(None)] * 3
                place[along] = index
                volume[tuple(place)] = self.zarr.read(index).swapaxes(0, 1)
            affine = self._affine().copy()
            first = np.zeros(3)
            first[rows], first[columns] = self.transforms.crop.top, self.transforms.crop.left
            affine[:3, 3] += affine[:3, :3] @ first
            image = nib.Nifti1Image(volume, affine, dtype=dtype)
            image.header.set_xyzt_units("mm")
            nib.save(image, self.folder / "registered.nii.gz")
        except nib.spatialimages.HeaderDataError as error:
            raise StorageError(
                f"registered.nii.gz can't store values of type {dtype}: {error}"
            ) from error
        finally:
            raw.unlink(missing_ok=True)

    # -- transforms ------------------------------------------------------------------------

    def _write_transform_files(self) -> None:
        folder = self.folder / "xfm"
        folder.mkdir()
        affine, (rows, columns, _) = self._affine(), self._axes()
        millimetres = np.array(self.transforms.spacing[1:]) * UNITS[self.transforms.unit]
        for section in self.transforms.sections:
            name = f"section-{section.index:04d}"
            for matrix, (itk, ras) in (
                (section.composed, transform_names(name, "section", "registered")),
                (
                    np.linalg.inv(section.composed),
                    transform_names(name, "registered", "section"),
                ),
            ):
                # ITK's x is the column and its y the row, in mm, without flips.
                plane = _embedded(matrix, 1, 0)
                scale = np.diag([millimetres[1], millimetres[0], 1.0, 1.0])
                plain = scale @ plane @ np.linalg.inv(scale)
                write_itk_affine(folder / itk, TO_LPS @ plain @ TO_LPS, 2)
                voxels = _embedded(matrix, rows, columns)
                np.savetxt(folder / ras, affine @ voxels @ np.linalg.inv(affine), fmt="%.17g")


def _embedded(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``(4, 4)`` of a map of rows and columns, which count along these axes."""
    result, axes = np.eye(4), (rows, columns)
    for i, down in enumerate(axes):
        for j, across in enumerate(axes):
            result[down, across] = matrix[i, j]
        result[down, 3] = matrix[i, 2]
    return result


def _write_section(
    output: StackOutput, index: int, facts: SectionFacts, composed: np.ndarray
) -> Cuts:
    """Resample a section and write it; no other call writes to its chunks."""
    stack, crop = output.stack, output.transforms.crop
    values = stack.unchanged(index, facts).astype(stack.dtype, copy=False)
    top, _, left, _ = stack.known_box(facts)
    matrix = composed.copy()
    matrix[:2, 2] -= (top, left)
    section = resample_section(
        values, matrix, crop, output.settings.interpolation, output.fill(facts)
    )
    output.zarr.write(index, section)
    if "tiff" in output.formats:
        require("tifffile").imwrite(
            output.folder / "sections" / f"section-{index:04d}.tif", section, compression="zlib"
        )
    still = np.eye(3)
    still[:2, 2] -= (top, left)
    lying = resample_section(values, still, crop, "nearest", output.fill(facts))
    return Cuts(_middle(lying), _middle(section))


def _middle(section: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    grey = section if section.ndim == 2 else section[..., :3].mean(-1)
    return (
        grey[grey.shape[0] // 2].astype(np.float32), grey[:, grey.shape[1] // 2].astype(np.float32),
    )  # fmt: skip
