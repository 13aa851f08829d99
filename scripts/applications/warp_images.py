"""Warps images through a chain of transforms to another grid, interpolating once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from scripts.errors import CohortError
from scripts.runtime.storage import check_replaceable, check_writable, publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.warp import WarpConfig
from scripts.spatial.transform_files import (
    TransformFile,
    read_transform,
    require_fields_cover,
)
from scripts.spatial.transforms import resample
from scripts.spatial.volumes import (
    read_grid,
    read_labels,
    read_volume,
    write_labels,
    write_map,
    written_name,
)

__all__ = ["WARPED_FOLDER", "ImageWarper"]

logger = logging.getLogger(__name__)

WARPED_FOLDER = "warped"


class ImageWarper:
    """Warps each subject's image into ``<output_dir>/warped/<subject>/<the image's name>``.

    A point of the reference passes through all transforms before the image is sampled. So a native
    map reaches the atlas by its affine and its field in one interpolation.

    Args:
        settings: of the warp.
        output_dir: destination.

    Raises:
        CohortError: a file doesn't exist.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(self, settings: WarpConfig, output_dir: str | Path) -> None:
        check_writable(output_dir)
        self.settings = settings
        self.output_dir = Path(output_dir)
        inputs: list[Path] = []
        for subject in settings.subjects:
            image, reference, transforms = self._files(subject)
            for path in (image, reference, *(one for file in transforms for one in file.files())):
                if not path.is_file():
                    raise CohortError(f"subject {subject}: no such file {path}")
            inputs += [image, reference, *(file.path for file in transforms)]
        folders = [self.output_dir / WARPED_FOLDER / subject for subject in settings.subjects]
        check_replaceable(*folders, inputs=inputs)

    def run(self) -> None:
        """Warp the images of all subjects.

        Raises:
            CohortError: a file can't be read, or nothing of an image is on the reference's grid.
            StorageError: a file can't be written.
        """
        for subject in self.settings.subjects:
            self._warp(subject)
        logger.info("%d images warped, in %s", len(self.settings.subjects), self.output_dir)

    def _warp(self, subject: str) -> None:
        image, reference, files = self._files(subject)
        watched = WatchedFiles([image, reference, *(file.path for file in files)])
        chain = [read_transform(file) for file in files]
        nearest = self.settings.interpolation == "nearest"
        volume, source = read_labels(image) if nearest else read_volume(image)
        wanted = read_grid(reference)
        require_fields_cover(f"subject {subject}", chain, files, wanted)
        warped = resample(volume, source, chain, wanted, order=0 if nearest else 1)
        if volume.any() and not warped.any():
            raise CohortError(
                f"subject {subject}: nothing of {image} is on the grid of {reference}; check that "
                "the transforms are the right ones, in antsApplyTransforms's order"
            )
        name = written_name(image)
        with publish_folder(self.output_dir / WARPED_FOLDER / subject) as staging:
            if nearest:
                write_labels(staging / name, warped, wanted)
            else:
                write_map(staging / name, warped, wanted)
            about = {
                "image": {"path": str(image), "sha256": watched.sha256(image)},
                "reference": str(reference),
                "interpolation": self.settings.interpolation,
                "transforms": [
                    {**file.as_dict(), "sha256": watched.sha256(file.path)} for file in files
                ],
            }
            (staging / "warped.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
            watched.check()

    def _files(self, subject: str) -> tuple[Path, Path, tuple[TransformFile, ...]]:
        def named(path: str) -> Path:
            return Path(path.replace("{subject}", subject))

        settings = self.settings
        transforms = tuple(
            TransformFile.of_entry(entry, subject=subject) for entry in settings.transforms
        )
        return named(settings.image), named(settings.reference), transforms
