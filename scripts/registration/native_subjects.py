"""Native subjects for alignment: one image each, and further images to warp with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.cohort import Candidate, Rejection, find_subjects
from scripts.errors import CohortError, ConfigurationError
from scripts.registration.images import ReadImage
from scripts.runtime.input_files import check_named
from scripts.runtime.inside import file_name_key
from scripts.settings.align import AlignConfig

__all__ = ["NativeFile", "NativeSubject", "find_native_subjects"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeFile:
    """An image to warp.

    Attributes:
        path: its file.
        name: its path inside the subject's output folder.
        labels: whether to interpolate by the nearest voxel.
    """

    path: Path
    name: str
    labels: bool = False


@dataclass(frozen=True, eq=False)
class NativeSubject:
    """A subject on its native grid.

    Attributes:
        name: the subject's.
        read: the image that transforms are estimated from.
        files: all images to warp, that one first.
    """

    name: str
    read: ReadImage
    files: tuple[NativeFile, ...]


def find_native_subjects(
    dataset_dir: str | Path, settings: AlignConfig, device: object = "cpu"
) -> tuple[list[NativeSubject], list[Rejection]]:
    """Find and read the subjects; leave out those that can't be used, with the reason.

    Args:
        dataset_dir: the dataset folder.
        settings: patterns, subjects, exclude, min_subjects.
        device: of the compared images.

    Raises:
        CohortError: fewer than ``min_subjects`` can be used, or two images of a subject would get
            the same name.
        ConfigurationError: the patterns contradict each other.
    """
    check_named(dataset_dir, "dataset_dir")
    root = Path(dataset_dir).absolute()
    first, *further = _patterns(settings)
    main, rejected = _found(root, first, settings, None)
    apart = any(one.run is not None for one in main.values())
    others = {pattern: _found(root, pattern, settings, apart)[0] for pattern in further}
    subjects = []
    for name, one in sorted(main.items()):
        person, path = one.person or name, one.maps[0].path
        files = [NativeFile(path, _relative(path, root, person))]
        missing = None
        for pattern in further:
            other = others[pattern].get(name)
            if other is None:
                place = pattern.replace("{subject}", person).replace("{run}", one.run or "{run}")
                missing = f"has no image at {place}"
                break
            file_path = other.maps[0].path
            files.append(
                NativeFile(
                    file_path, _relative(file_path, root, person), pattern in settings.labels
                )
            )
        if missing:
            rejected.append(Rejection(name, str(root / name), missing))
            continue
        names = [file.name for file in files]
        if len(set(map(file_name_key, names))) < len(names):
            raise CohortError(
                f"subject {name}: two of its images would both be written as "
                f"{max(names, key=names.count)}"
            )
        try:
            read = ReadImage(path, settings.log_offset, settings.background, str(device))
        except CohortError as error:
            rejected.append(Rejection(name, str(path), str(error).removeprefix(f"{path}: ")))
            continue
        subjects.append(NativeSubject(name, read, tuple(files)))
    _require(subjects, rejected, settings, root, first)
    return subjects, rejected


def _patterns(settings: AlignConfig) -> tuple[str, ...]:
    everything = (settings.image, *settings.images, *settings.labels)
    if len(set(everything)) < len(everything):
        raise ConfigurationError(
            "align.image, align.images, align.labels: must name every image once"
        )
    return everything


def _found(
    root: Path, pattern: str, settings: AlignConfig, runs_apart: bool | None
) -> tuple[dict[str, Candidate], list[Rejection]]:
    """The subjects by name, with one file each; and those left out."""
    discovery = find_subjects(root, settings.subject_search(pattern, runs_apart))
    return {one.name: one for one in discovery.candidates}, list(discovery.rejected)


def _relative(path: Path, root: Path, subject: str) -> str:
    """Path of an image inside its subject's folder: as in the dataset, below the subject's name."""
    parts = path.relative_to(root).parts
    depth = next(i for i, part in enumerate(parts) if subject in part)
    return "/".join(parts[depth + 1 :] or parts[-1:])


def _require(
    subjects: Sequence[NativeSubject],
    rejected: Sequence[Rejection],
    settings: AlignConfig,
    root: Path,
    pattern: str,
) -> None:
    least = settings.min_subjects
    for one in rejected:
        logger.warning("left out: %s: %s (%s)", one.subject, one.reason, one.path)
    if len(subjects) < least:
        lines = [f"  {one.subject}: {one.reason}" for one in rejected]
        raise CohortError(
            f"{root}: {len(subjects)} usable subjects at {pattern}, at least {least} are needed "
            f"({settings.key('min_subjects')}; see {settings.key('image')} and "
            f"{settings.key('subjects')})",
            *lines,
        )
    planes = {subject.read.spatial_dims for subject in subjects}
    channels = {subject.read.image.values.shape[1] for subject in subjects}
    if len(planes) > 1 or len(channels) > 1:
        raise CohortError(f"{root}: has planes and volumes, or different numbers of channels")
