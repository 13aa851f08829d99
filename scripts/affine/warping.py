"""Images through a chain of transforms onto another grid, interpolated once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.affine.warp_settings import WarpConfig
from scripts.atlas.maps import write_map
from scripts.atlas.transforms import (
    TransformFile,
    read_grid,
    read_transform,
    read_volume,
    resample,
    voxels_of,
)
from scripts.cohort import Grid
from scripts.errors import CohortError
from scripts.storage import check_space, check_writable, file_hash, publish_folder

__all__ = ["WARPED_FOLDER", "ImageWarper"]

logger = logging.getLogger(__name__)

WARPED_FOLDER = "warped"


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
        self._check_space()
        for subject in self.settings.subjects:
            self._warp(subject)
        logger.info("%d images warped, in %s", len(self.settings.subjects), self.output_dir)

    def _check_space(self) -> None:
        images = 0
        for subject in self.settings.subjects:
            image, reference, _ = self._files(subject)
            # A label's type may have 8 bytes, floats have 4.
            images += 8 * voxels_of(reference)[0] * voxels_of(image)[1]
        check_space({self.output_dir: {"images": images}})

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
