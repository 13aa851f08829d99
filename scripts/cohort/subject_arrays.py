"""Subjects from Python, as files that the jobs read: arrays, or paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.runtime.ownership import check_contents, write_mark
from scripts.runtime.storage import check_writable
from scripts.spatial.image_arrays import write_array

__all__ = ["MapSource", "map_source", "subject_masks", "write_native_images"]


@dataclass(frozen=True)
class MapSource:
    """Where a job reads maps that come from Python.

    Attributes:
        folder: a dataset folder, or the folder into which arrays were written; None for paths.
        files: the paths, or the files of arrays; empty for a dataset folder.
    """

    folder: str | None
    files: tuple[str, ...]

    def with_layout(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings of a job that reads ``folder``, with the layout of arrays that were written.

        Args:
            settings: of the block ``learned_atlas``.
        """
        block = dict(settings or {})
        if self.folder is None or not self.files:
            return block
        return {
            **block,
            "cohort": {"layout": "flat", "normalisation": "none", **block.get("cohort", {})},
        }


def map_source(
    maps: str | Path | Sequence[str | Path] | Sequence[np.ndarray] | np.ndarray,
    affine: np.ndarray | None,
    output_dir: Path,
) -> MapSource:
    """The files of maps; arrays are written to ``<output_dir>/cohort/subject_001.nii.gz`` etc.

    Args:
        maps: a dataset folder, paths of files, or arrays of one shape ``(X, Y, Z)``.
        affine: ``(4, 4)`` RAS mm, of arrays.
        output_dir: destination of the job.

    Raises:
        StorageError: the folder contains other files or can't be written.
        ValueError: neither paths nor arrays, no affine, or several shapes.
    """
    if isinstance(maps, str | Path):
        return MapSource(str(maps), ())
    listed = list(maps)
    files = [str(one) for one in listed if isinstance(one, str | Path)]
    arrays = [one for one in listed if isinstance(one, np.ndarray)]
    if listed and len(files) == len(listed):
        return MapSource(None, tuple(files))
    if not listed or len(arrays) < len(listed):
        raise ValueError("maps: must be a folder, a list of paths, or a list of arrays")
    shapes = {one.shape for one in arrays}
    if len(shapes) > 1:
        raise ValueError(f"maps of shapes {sorted(shapes)}: must be on one grid")
    folder = output_dir / "cohort"
    check_contents(folder)
    paths = [folder / f"subject_{number:03d}.nii.gz" for number in range(1, len(arrays) + 1)]
    for stale in set(folder.glob("subject_*.nii.gz")) - set(paths):
        stale.unlink()  # of an earlier, larger cohort
    for path, one in zip(paths, arrays, strict=True):
        _write(path, one, affine)
    write_mark(folder)
    return MapSource(str(folder), tuple(str(path) for path in paths))


def subject_masks(
    masks: Sequence[np.ndarray | None],
    affine: np.ndarray | None,
    maps: MapSource,
    output_dir: Path,
) -> str:
    """Write the masks of subjects whose maps are arrays to ``<output_dir>/cohort_masks``.

    Args:
        masks: one per map, not 0 in voxels that don't count; None: the subject has no such voxels.
        affine: ``(4, 4)`` RAS mm.
        maps: of the arrays.
        output_dir: destination of the job.

    Returns:
        The pattern of the masks, for ``cohort.mask``.

    Raises:
        StorageError: the folder contains other files or can't be written.
        ValueError: the numbers of masks and maps differ, or the maps aren't arrays.
    """
    if affine is None or len(masks) != len(maps.files):
        raise ValueError(f"{len(masks)} masks: must be one per array of maps, or None for it")
    folder = output_dir / "cohort_masks"
    check_contents(folder)
    folder.mkdir(exist_ok=True)
    for file, mask in zip(maps.files, masks, strict=True):
        path = folder / Path(file).name
        path.unlink(missing_ok=True)
        if mask is not None:
            _write(path, np.asarray(mask != 0, dtype=np.float64), affine)
    write_mark(folder)
    return str((folder / "{subject}.nii.gz").absolute())


def write_native_images(
    images: Sequence[np.ndarray], affines: Sequence[np.ndarray], folder: Path
) -> None:
    """Write native images to ``<folder>/subject_001/image.nii.gz`` etc.

    Args:
        images: on any grids.
        affines: ``(4, 4)`` RAS mm, one per image.
        folder: destination.

    Raises:
        StorageError: the folder contains other files or can't be written.
        ValueError: the numbers of images and affines differ.
    """
    if len(affines) != len(images):
        raise ValueError(f"{len(images)} arrays and {len(affines)} affines: give one per array")
    check_contents(folder)
    files = [
        folder / f"subject_{number:03d}" / "image.nii.gz" for number in range(1, len(images) + 1)
    ]
    for stale in set(folder.glob("subject_*/image.nii.gz")) - set(files):
        stale.unlink()  # of an earlier, larger cohort
        with suppress(OSError):  # a file manager's file is in it
            stale.parent.rmdir()
    for path, image, affine in zip(files, images, affines, strict=True):
        _write(path, image, affine)
    write_mark(folder)


def _write(path: Path, image: np.ndarray, affine: np.ndarray | None) -> None:
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, image, affine)
