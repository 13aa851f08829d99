"""Warps streamlines of subjects to template space, or of the template to a subject's space."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.applications.subject_fields import subject_field
from scripts.errors import CohortError, ConfigurationError
from scripts.publishing.published_atlas import PublishedAtlas, open_atlas
from scripts.runtime.file_names import ending_of, stem_of
from scripts.runtime.inside import entries
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import (
    check_replaceable,
    check_writable,
    publish_folder,
)
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.warp_streamlines import WarpStreamlinesConfig
from scripts.spatial.field_inverse import InverseFieldTransform
from scripts.spatial.grid import Grid
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.transforms import (
    AffineTransform,
    ComposedTransform,
    FieldTransform,
    Transform,
)
from scripts.spatial.volumes import read_grid
from scripts.tractograms import Streamlines, Tractogram, open_tractogram, write_tractogram

__all__ = ["STREAMLINES_FOLDER", "StreamlineWarper", "move_streamlines", "read_point_transform"]

logger = logging.getLogger(__name__)

STREAMLINES_FOLDER = "warped_streamlines"
_NEEDS_GRID = (".trk", ".trx")


def read_point_transform(file: TransformFile) -> Transform:
    """Read a transform of points; unlike for images, a field can also be inverted.

    Raises:
        CohortError: the file can't be read or isn't a transform.
    """
    transform = read_transform(dataclasses.replace(file, inverted=False))
    return _inverse(transform) if file.inverted else transform


def _inverse(transform: Transform) -> Transform:
    if isinstance(transform, ComposedTransform):
        return _inverse(transform.inner) @ _inverse(transform.outer)
    return InverseFieldTransform(transform) if isinstance(transform, FieldTransform) else ~transform


def move_streamlines(streamlines: Streamlines, transforms: Sequence[Transform]) -> Streamlines:
    """Map every point through transforms, the first one first; all other values are kept.

    Args:
        streamlines: RAS mm.
        transforms: maps of points, RAS mm.
    """
    points = streamlines.points.T.astype(np.float64)
    for transform in transforms:
        points = transform.apply(points)
    moved = np.ascontiguousarray(points.T, dtype=streamlines.points.dtype)
    return dataclasses.replace(streamlines, points=moved)


@dataclass
class _Outside:
    """Counts points outside a grid."""

    grid: Grid | None
    points: int = 0
    total: int = 0

    def count(self, points: np.ndarray) -> None:
        """Add the points ``(P, 3)`` of a part, RAS mm."""
        self.total += len(points)
        if self.grid is None:
            return
        voxels = (~AffineTransform(self.grid.affine)).apply(points.T.astype(np.float64))
        ends = np.array((*self.grid.shape, 1)[:3])[:, None] - 0.5
        self.points += int((~((voxels >= -0.5) & (voxels <= ends)).all(axis=0)).sum())


@dataclass(frozen=True)
class _Way:
    """One subject's tractogram, and the transform files for its points."""

    subject: str
    tractogram: Tractogram
    files: tuple[TransformFile, ...]
    reference: Path | None
    name: str


class StreamlineWarper:
    """Warps tractograms into ``<output_dir>/warped_streamlines/<subject>/<the tractogram's name>``.

    A field that warps images from A to B maps points of B to points of A. Points of streamlines
    therefore need the field of the opposite direction. With the bundle's fields, ``direction``
    selects the right one; other transforms are given in the order in which points pass through
    them. Streamlines are read, warped and written in parts, to save memory.

    Args:
        settings: of the warp.
        atlas_dir: the published folder, for the bundle's fields.
        registered_dir: output folder of ``registering``.
        output_dir: destination of ``warped_streamlines``.

    Raises:
        CohortError: a tractogram, transform or reference is missing or can't be used.
        ConfigurationError: the format needs a reference but none is given.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(
        self,
        settings: WarpStreamlinesConfig,
        atlas_dir: str | Path,
        registered_dir: str | Path,
        output_dir: str | Path,
    ) -> None:
        check_writable(output_dir)
        self.settings = settings
        self.registered = Path(registered_dir)
        self.folder = Path(output_dir) / STREAMLINES_FOLDER
        atlas = None if settings.transforms else open_atlas(atlas_dir)
        if atlas is not None and atlas.averaged:
            raise CohortError(
                f"{atlas.folder}: is an average of maps and has no fields; give "
                "warp_streamlines#transforms"
            )
        self.ways = [self._way(subject, atlas) for subject in settings.subjects]
        for way in self.ways:
            inputs = [way.tractogram.path, *(file.path for file in way.files)]
            check_replaceable(self.folder / way.subject, inputs=inputs)

    def run(self) -> Path:
        """Warp the tractograms of all subjects.

        Raises:
            CohortError: a file can't be read, or no streamline is where the transforms apply.
            StorageError: a folder can't be written.
        """
        made = not self.folder.exists()
        try:
            with progress_bar(len(self.ways), "tractograms") as bar:
                for way in self.ways:
                    self._warp(way)
                    bar.update()
        finally:
            if made:
                with suppress(OSError):  # it holds what was finished
                    self.folder.rmdir()
        logger.info("%d tractograms warped, in %s", len(self.ways), self.folder)
        return self.folder

    def _way(self, subject: str, atlas: PublishedAtlas | None) -> _Way:
        settings = self.settings
        tractogram = open_tractogram(_named(settings.tractogram, subject), settings.vtk_space)
        reference = None if settings.reference is None else _named(settings.reference, subject)
        if atlas is None:
            files = tuple(
                TransformFile.of_entry(entry, subject=subject) for entry in settings.transforms
            )
        else:
            to_template = settings.direction == "to_template"
            field, template = subject_field(
                atlas, self.registered, subject, "warp_streamlines#transforms", to_template
            )
            files = (TransformFile(field),)
            if reference is None and to_template:
                reference = atlas.maps(template)["mean"]
        for needed in (one for file in files for one in file.files()):
            if not needed.is_file():
                raise CohortError(f"subject {subject}: no such transform {needed}")
        if reference is not None and not reference.is_file():
            raise CohortError(f"subject {subject}: no such reference image {reference}")
        given_ending = ending_of(tractogram.path).removesuffix(".gz").replace(".fib", ".vtk")
        ending = given_ending if settings.format == "same" else f".{settings.format}"
        name = stem_of(tractogram.path) + ending
        if reference is None and Path(name).suffix.lower() in _NEEDS_GRID:
            raise ConfigurationError(
                "warp_streamlines.reference = None: TRK and TRX files contain the grid of their "
                f"space, so {name} needs an image of the target space; give "
                "--warp_streamlines#reference, or --warp_streamlines#format tck"
            )
        return _Way(subject, tractogram, files, reference, name)

    def _warp(self, way: _Way) -> None:
        source = way.tractogram.path
        # A TRX may be a folder.
        parts = [source] if source.is_file() else [one.path for one in entries(source)]
        needed = [one for file in way.files for one in file.files()]
        references = [] if way.reference is None else [way.reference]
        watched = WatchedFiles([*parts, *needed, *references])
        transforms = [read_point_transform(file) for file in way.files]
        grid = None if way.reference is None else read_grid(way.reference)
        first = transforms[0]
        while isinstance(first, ComposedTransform):
            first = first.inner
        outside = _Outside(first.grid if isinstance(first, FieldTransform) else None)
        missed = _Outside(grid)

        def moved() -> Iterator[Streamlines]:
            for part in way.tractogram.chunks(per_point=True):
                outside.count(part.points)
                result = move_streamlines(part, transforms)
                missed.count(result.points)
                yield result

        groups = way.tractogram.groups()
        if groups and Path(way.name).suffix.lower() != ".trx":
            logger.warning(
                "subject %s: %s has %d groups, which only a TRX has room for; they are left out of "
                "%s (give --warp_streamlines#format trx)",
                way.subject, source, len(groups), way.name,
            )  # fmt: skip
        with publish_folder(self.folder / way.subject) as staging:
            count = write_tractogram(
                staging / way.name,
                moved(),
                None if grid is None else grid.shape,
                None if grid is None else grid.affine,
                groups,
            )
            if outside.total and outside.points == outside.total:
                raise CohortError(
                    f"subject {way.subject}: no point of {way.tractogram.path} is on the grid of "
                    f"{way.files[0].path}; check that they share a space, and that the direction "
                    "is right"
                )
            if missed.total and missed.points == missed.total:
                raise CohortError(
                    f"subject {way.subject}: no point of {way.tractogram.path} comes into the grid "
                    f"of the reference {way.reference}; check that the transforms lead there"
                )
            about = {
                "tractogram": {
                    "path": str(source),
                    "sha256": watched.sha256(source) if source in parts else None,
                },
                "streamlines": count,
                "points": outside.total,
                "points_outside_the_first_field": outside.points,
                "transforms": [
                    {**file.as_dict(), "sha256": watched.sha256(file.path)} for file in way.files
                ],
                "reference": None if way.reference is None else str(way.reference),
            }  # fmt: skip
            (staging / "warped_streamlines.json").write_text(
                json.dumps(about, indent=1) + "\n", encoding="utf-8"
            )
            watched.check()
        if outside.points:
            logger.warning(
                "subject %s: %d of %d points are outside the field %s and don't "
                "move",
                way.subject, outside.points, outside.total, way.files[0].path,
            )  # fmt: skip


def _named(path: str, subject: str) -> Path:
    return Path(path.replace("{subject}", subject))
