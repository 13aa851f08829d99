"""Images through a chain of transforms onto another grid, interpolated once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import nibabel as nib
import numpy as np
from pydantic import BeforeValidator, field_validator

from scripts.atlas.maps import write_map
from scripts.atlas.transforms import (
    TransformFile,
    read_grid,
    read_transform,
    read_volume,
    resample,
)
from scripts.cohort import Grid
from scripts.consumers.settings import Transforms
from scripts.errors import CohortError, report_errors_in_one_line
from scripts.sections import Section, Text, setting, to_names
from scripts.storage import check_writable, file_hash, publish_folder

__all__ = ["WARPED_FOLDER", "ImageWarper", "WarpConfig", "load_warp"]

logger = logging.getLogger(__name__)

WARPED_FOLDER = "warped"


class WarpConfig(Section):
    """The whole ``warp:`` block."""

    key_path: ClassVar[str] = "warp"

    subjects: Annotated[list[str], BeforeValidator(to_names)] = setting(
        [], "Whose images to warp.", "a non-empty list of distinct names"
    )
    image: Text = setting("", "Path of the image, with `{subject}`.", "a path")
    transforms: Transforms = setting(
        [],
        "Transforms in the order of antsApplyTransforms's -t, the first one the first that a point "
        "of the reference passes through; `{subject}` in a path, `[path, 1]` for an affine's "
        "inverse.",
        "a non-empty list of paths and [path, 1]",
    )
    reference: Text = setting(
        "", "Image whose grid the result lies on, with `{subject}`.", "a path"
    )
    interpolation: Literal["linear", "nearest"] = setting(
        "linear", "nearest for labels.", "linear or nearest"
    )

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("names nobody")
        if len(set(names)) < len(names):
            raise ValueError("has a name twice")
        for name in names:
            if re.search(r"[/\\\x00-\x1f]", name) or not name.strip() or name.startswith("."):
                raise ValueError(f"has a name that is no folder's: {name!r}")
        return names

    @field_validator("image", "reference")
    @classmethod
    def _check_path(cls, path: str) -> str:
        if not path.strip():
            raise ValueError("is missing")
        return path

    @field_validator("transforms")
    @classmethod
    def _check_transforms(cls, entries: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
        if not entries:
            raise ValueError("is empty")
        return entries


def load_warp(block: Mapping[str, Any] | None) -> WarpConfig:
    """Validate the ``warp:`` block; user errors are one line from here on.

    Raises:
        ConfigurationError: with a line per violation.
    """
    report_errors_in_one_line()
    return WarpConfig.load(block)


class ImageWarper:
    """Warps each subject's image into ``<output_dir>/warped/<subject>/<the image's name>``.

    A point of the reference passes through all transforms, and only then is the image read: a
    native map reaches the atlas by its field and its affine in one interpolation.

    Args:
        settings: of the warp.
        output_dir: where to.

    Raises:
        CohortError: a file isn't there.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(self, settings: WarpConfig, output_dir: str | Path) -> None:
        check_writable(output_dir)
        self.settings = settings
        self.output_dir = Path(output_dir)
        for subject in settings.subjects:
            image, reference, transforms = self._files(subject)
            for path in (image, reference, *(file.path for file in transforms)):
                if not path.is_file():
                    raise CohortError(f"subject {subject}: there is no file {path}")

    def run(self) -> None:
        """Warp everybody's image.

        Raises:
            CohortError: a file can't be read, or nothing of an image lies on the reference.
            StorageError: something can't be written.
        """
        for subject in self.settings.subjects:
            self._warp(subject)
        logger.info("%d images warped, in %s", len(self.settings.subjects), self.output_dir)

    def _warp(self, subject: str) -> None:
        image, reference, files = self._files(subject)
        chain = [read_transform(file) for file in files]
        volume, source = read_volume(image)
        wanted = read_grid(reference)
        nearest = self.settings.interpolation == "nearest"
        found = resample(volume, source, chain, wanted, order=0 if nearest else 1)
        if volume.any() and not found.any():
            raise CohortError(
                f"subject {subject}: nothing of {image} lies on the grid of {reference}; are the "
                "transforms the right ones, in antsApplyTransforms's order?"
            )
        with publish_folder(self.output_dir / WARPED_FOLDER / subject) as staging:
            if nearest:
                _write_as(staging / image.name, found, wanted, source)
            else:
                write_map(staging / image.name, found, wanted)
            about = {
                "image": {"path": str(image), "sha256": file_hash(image)},
                "reference": str(reference),
                "interpolation": self.settings.interpolation,
                "transforms": [
                    {"path": str(file.path), "inverted": file.inverted,
                     "sha256": file_hash(file.path)}
                    for file in files
                ],
            }  # fmt: skip
            (staging / "warped.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")

    def _files(self, subject: str) -> tuple[Path, Path, tuple[TransformFile, ...]]:
        def named(path: str) -> Path:
            return Path(path.replace("{subject}", subject))

        settings = self.settings
        transforms = tuple(TransformFile(named(path), back) for path, back in settings.transforms)
        return named(settings.image), named(settings.reference), transforms


def _write_as(path: Path, values: np.ndarray, grid: Grid, own: Grid) -> None:
    """Labels in the type of the file that they came from."""
    volume = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    kind = own.header.get_data_dtype()
    whole = np.rint(volume) if np.issubdtype(kind, np.integer) else volume
    image = nib.Nifti1Image(whole.astype(kind), grid.affine)
    image.set_sform(grid.affine, code=int(grid.header["sform_code"]) or 1)
    image.set_qform(grid.affine, code=int(grid.header["qform_code"]) or 1)
    nib.save(image, str(path))
