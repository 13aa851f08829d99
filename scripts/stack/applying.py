"""The job that warps other images of the same sections by known transforms."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from scripts.errors import CohortError
from scripts.runtime.lock import locked_folders
from scripts.runtime.storage import check_writable, publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.stack import UNITS, ApplyStackConfig
from scripts.stack.cropping import CropBox
from scripts.stack.output import OUTPUT_FOLDER, StackOutput, check_apart, check_room
from scripts.stack.quality_page import quality_page
from scripts.stack.source import Stack, inspect, open_stack
from scripts.stack.transforms import StackTransforms, read_transforms
from scripts.stack.workers import Workers

__all__ = ["StackApplication", "scaled"]

logger = logging.getLogger(__name__)

_ROUNDED = 1.5  # pixels of the registered stack by which a rounded size may differ
_WHOLE = 1e-6


class StackApplication:
    """Warps another channel, labels or a finer resolution to the frame of a registered stack.

    Nothing is registered. The result is ``<output_dir>/registered_stack/``, as the registration
    writes it, whole or not at all.

    Args:
        settings: of the job.
        output_dir: where to.

    Raises:
        CohortError: stack or transforms can't be opened, or don't fit each other.
        ConfigurationError: a setting doesn't fit the stack, or a library is missing.
        StorageError: ``output_dir`` can't be written, or is an input.
    """

    def __init__(self, settings: ApplyStackConfig, output_dir: str | Path) -> None:
        check_writable(output_dir)
        self.settings = settings
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / OUTPUT_FOLDER
        check_apart(self.output_dir, settings.stack, settings.transforms)
        self.watched = WatchedFiles([settings.transforms])
        self.known = read_transforms(settings.transforms)
        # Files without a spacing have the registered sections' pixels.
        usual = (self.known.spacing, self.known.unit)
        self.stack = open_stack(settings, None, usual)
        if len(self.stack) != len(self.known.sections):
            raise CohortError(
                f"{settings.stack}: has {len(self.stack)} sections, but {settings.transforms} "
                f"places {len(self.known.sections)}"
            )
        self.stack = replace(self.stack, order=self.known.order)

    def run(self) -> Path:
        """Resample and publish.

        Returns:
            the published folder.

        Raises:
            CohortError: a section can't be used, or has another size than in the transforms.
            StorageError: something can't be written; the earlier output stays.
        """
        settings = self.settings
        with (
            locked_folders(self.output_dir),
            Workers(settings.n_workers, settings.scheduler) as workers,
        ):
            inspection = inspect(self.stack, workers, settings.key_path)
            transforms = scaled(self.known, inspection.stack, settings.stack)
            transforms = replace(
                transforms,
                about={
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "stack": {"path": settings.stack, "array": settings.array,
                              "sha256": inspection.identity()},
                    "applied": {"path": settings.transforms,
                                "sha256": self.watched.sha256(settings.transforms)},
                    "settings": settings.as_dict(),
                    "versions": {name: version(name) for name in ("numpy", "torch", "zarr")},
                },
            )  # fmt: skip
            check_room(self.output_dir, inspection.stack, transforms, settings.formats)
            crop = transforms.crop
            attributes = {
                "spacing": list(transforms.spacing),
                "unit": transforms.unit,
                "composed_transforms": [one.composed.tolist() for one in transforms.sections],
                "crop_box": [crop.top, crop.bottom, crop.left, crop.right],
                "processing": {"interpolation": settings.interpolation, "fill": settings.fill},
            }
            with publish_folder(self.folder) as staging:
                output = StackOutput(staging, inspection, transforms, settings)
                cuts = output.write(workers, attributes)
                page = quality_page(transforms, cuts, settings.as_dict())
                (staging / "quality.html").write_text(page, encoding="utf-8")
                self.watched.check()
        logger.info("%d sections resampled, in %s", len(self.stack), self.folder)
        return self.folder


def scaled(known: StackTransforms, stack: Stack, name: str) -> StackTransforms:
    """Transforms for other pixels of the same sections.

    Both images cover the same area: their outer edges coincide, so that the centre of
    the first pixel of a finer image is at -(1 - ratio) / 2 of the coarser one's pixels.

    Args:
        known: of the registered stack.
        stack: the other one.
        name: of it, for messages.

    Raises:
        CohortError: the sizes don't follow from the spacings.
    """
    to_known = UNITS[stack.unit] / UNITS[known.unit]
    ratios = np.array(known.spacing[1:]) / (np.array(stack.spacing[1:]) * to_known)
    expected = np.array(known.shape) * ratios
    if (np.abs(expected - stack.shape) > _ROUNDED * np.maximum(ratios, 1)).any():
        raise CohortError(
            f"{name}: has sections of {stack.shape[0]}x{stack.shape[1]} pixels of "
            f"{stack.spacing[1]:g} x {stack.spacing[2]:g} {stack.unit}; the registered ones have "
            f"{known.shape[0]}x{known.shape[1]} of {known.spacing[1]:g} x {known.spacing[2]:g} "
            f"{known.unit}: they must cover the same area"
        )
    if np.abs(ratios - 1).max() < _WHOLE:
        crop = known.crop
        sections = known.sections
    else:
        onto = np.diag([*ratios, 1.0])
        onto[:2, 2] = (ratios - 1) / 2
        back = np.linalg.inv(onto)
        sections = tuple(
            replace(one, pairwise=onto @ one.pairwise @ back, composed=onto @ one.composed @ back)
            for one in known.sections
        )
        inside = _WHOLE * max(ratios.max(), 1)
        crop = CropBox(
            int(np.ceil(known.crop.top * ratios[0] - inside)),
            int(min(np.floor(known.crop.bottom * ratios[0] + inside), stack.shape[0])),
            int(np.ceil(known.crop.left * ratios[1] - inside)),
            int(min(np.floor(known.crop.right * ratios[1] + inside), stack.shape[1])),
        )
        if min(crop.shape) < 1:
            raise CohortError(f"{name}: nothing of the crop is left at its resolution")
    return replace(
        known, spacing=stack.spacing, unit=stack.unit, shape=stack.shape, crop=crop,
        sections=sections,
    )  # fmt: skip
