"""Counts tractograms into density maps, and keeps these beside the dataset for the next run.

A cohort of tractograms is used as the maps that are counted from them: all later steps see NIfTI
files on one grid.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from scripts.cohort.discovery import Candidate, FoundMap
from scripts.errors import ConfigurationError
from scripts.runtime.checked_json import read_checked, write_checked
from scripts.runtime.input_files import FileError, say
from scripts.runtime.inside import inside
from scripts.runtime.storage import check_writable, file_hash, write_whole
from scripts.runtime.watched_files import changed
from scripts.settings.cohort import CohortRequest
from scripts.spatial.grid import Grid
from scripts.spatial.volumes import read_reference, write_density
from scripts.tractograms import (
    DensityCounter,
    TractogramError,
    count_tractogram,
    is_tractogram,
    open_tractogram,
    open_weights,
)
from scripts.tractograms.density import Progress

__all__ = ["MAPS_FOLDER", "CountedMap", "Counting", "count_density", "counting_for"]

logger = logging.getLogger(__name__)

MAPS_FOLDER = ".density_maps"
_METHOD = "exact traversal 2"  # maps counted otherwise are counted anew


def count_density(
    paths: Sequence[str | Path],
    grid: Grid,
    weights: Sequence[str] = (),
    ends: bool = False,
    progress: Progress | None = None,
    vtk_space: str = "auto",
) -> DensityCounter:
    """Count tractograms into one density map; see `DensityCounter`.

    Args:
        paths: tractograms; their maps are added up.
        grid: to count on.
        weights: none, or one source per tractogram, see `open_weights`.
        ends: count only the ends of streamlines.
        progress: called after each part of each tractogram.
        vtk_space: see `open_tractogram`.

    Raises:
        TractogramError: a file can't be used, or no streamline touches the grid.
        ConfigurationError: the numbers of weights and tractograms differ.
    """
    if weights and len(weights) != len(paths):
        raise ConfigurationError(
            f"weights = {list(weights)}: must be as many as tractograms ({len(paths)})"
        )
    # Headers first: a mistake is reported early.
    opened = [open_tractogram(path, vtk_space) for path in paths]
    sources = [open_weights(one, of) for one, of in zip(weights, opened, strict=False)]
    counter = DensityCounter(grid.shape, grid.affine, ends)
    for number, one in enumerate(opened):
        count_tractogram(counter, one, sources[number] if sources else None, progress)
    if counter.streamlines and counter.missed == counter.streamlines:
        raise TractogramError(
            Path(paths[0]),
            f"none of {counter.streamlines} streamlines touches the reference's grid; check that "
            "they are in the same space",
        )
    return counter


# ---------------------------------------------------------------------------------------------
# Cohorts
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountedMap:
    """The origin of a counted map.

    Attributes:
        tractogram: path of its file.
        sha256: of that file.
        streamlines: number of streamlines; also the map's waytotal.
        outside: number of their points outside the grid.
        left: number of streamlines with such a point.
    """

    tractogram: str
    sha256: str
    streamlines: int
    outside: int
    left: int

    @property
    def remarks(self) -> tuple[str, ...]:
        """Anything that isn't an error but worth a warning."""
        if not self.outside:
            return ()
        return (f"{self.outside} points of {self.left} streamlines are outside the grid",)


@dataclass(frozen=True, eq=False)
class Counting:
    """How the tractograms of a cohort become maps.

    Attributes:
        grid: that all are counted on.
        folder: where their maps are kept; None: hidden beside each tractogram.
        vtk_space: see `open_tractogram`.
    """

    grid: Grid
    folder: Path | None
    vtk_space: str = "auto"

    def map_of(self, name: str, source: FoundMap) -> tuple[FoundMap, CountedMap | None]:
        """The map of a tractogram, kept from an earlier run or counted now.

        It is identified by the tractogram's bytes and the grid, so that a change of either leads to
        a new count. Beside the map are its waytotal (the number of streamlines), which makes the
        maps probabilities, and a description.

        Args:
            name: of the subject; the file name begins with it.
            source: a tractogram, or a map, which is returned unchanged.

        Raises:
            TractogramError: the tractogram can't be used, or is empty although it is a whole map.
            StorageError: the map can't be written.
        """
        if not is_tractogram(source.path):
            return source, None
        sha256 = _hash_of(source.path)
        folder = self.folder or inside(source.path.parent, MAPS_FOLDER, kind="folder")
        label = name if source.tract is None else f"{name}_{source.tract}"
        stem = f"{label}_{self._key(sha256)}"
        path, about = folder / f"{stem}.nii.gz", folder / f"{stem}.json"
        counted = _kept(path, about)
        if counted is None:
            counted = self._count(source, sha256, path, about)
        if not counted.streamlines and source.tract is None:
            raise TractogramError(source.path, "is empty: contains no streamline")
        # The same bytes may have been counted at another location.
        return replace(source, path=path), replace(counted, tractogram=str(source.path))

    def _key(self, sha256: str) -> str:
        recorded = [_METHOD, sha256, self.grid.shape, self.grid.affine.round(9).tolist()]
        text = json.dumps(recorded if self.vtk_space == "auto" else [*recorded, self.vtk_space])
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    def _count(self, source: FoundMap, sha256: str, path: Path, about: Path) -> CountedMap:
        check_writable(path.parent)
        counter = count_density([source.path], self.grid, vtk_space=self.vtk_space)
        if _hash_of(source.path) != sha256:
            raise changed(source.path)
        counted = CountedMap(
            str(source.path), sha256, counter.streamlines, counter.outside, counter.left
        )
        waytotal = _waytotal_of(path, about)
        with write_whole(waytotal) as staged:
            staged.write_text(f"{counter.streamlines}\n", encoding="ascii")
        write_density(path, counter.density, self.grid)
        # Written last: a description means that everything else is complete.
        files = {"map": file_hash(path), "waytotal": file_hash(waytotal)}
        write_checked(about, {**asdict(counted), "files": files})
        return counted


# All keys are known, so that a changed letter in one is noticed, in that of the checksum as well.
_KEYS = frozenset({*(one.name for one in fields(CountedMap)), "files"})


def _kept(path: Path, about: Path) -> CountedMap | None:
    """What an earlier run counted; None if it isn't all there, or isn't what was written."""
    if not (os.path.lexists(about) and os.path.lexists(path)):
        return None
    try:
        recorded = read_checked(inside(about.parent, about.name), _KEYS)
        whole = [recorded[name] for name in ("streamlines", "outside", "left")]
        if not all(type(number) is int and number >= 0 for number in whole):
            raise ValueError("a number of streamlines is missing")
        counted = CountedMap(str(recorded["tractogram"]), str(recorded["sha256"]), *whole)
        files = {"map": path, "waytotal": _waytotal_of(path, about)}
        hashes = recorded.get("files")  # unknown to earlier versions
        for name, file in files.items():
            digest = file_hash(inside(file.parent, file.name))
            if hashes is not None and digest != hashes[name]:
                raise ValueError(f"{file.name} is not what was written (checksum)")
    except (FileError, OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("%s: damaged (%s): the tractogram is counted again", about, say(error))
        return None
    return counted


def _hash_of(tractogram: Path) -> str:
    try:
        return file_hash(tractogram)
    except OSError as error:
        raise TractogramError(tractogram, f"can't be read: {error.strerror}") from error


def _waytotal_of(path: Path, about: Path) -> Path:
    return path.with_name(f"{about.stem}_waytotal")


def counting_for(
    candidates: Sequence[Candidate],
    request: CohortRequest,
    dataset_dir: Path | None,
    grid: Grid | None = None,
) -> Counting | None:
    """How to count the tractograms among the files of some subjects; None without tractograms.

    Args:
        candidates: the subjects.
        request: gives reference and density_dir.
        dataset_dir: base of relative paths; None for files listed one by one.
        grid: of an atlas that the subjects are registered to; replaces the reference.

    Raises:
        ConfigurationError: there are tractograms but no reference.
        CohortError: the reference can't be read.
    """
    every = [one.path for candidate in candidates for one in candidate.maps]
    streamlines = [path for path in every if is_tractogram(path)]
    if not streamlines:
        return None
    base = dataset_dir or Path.cwd()
    if grid is None:
        if request.cohort.reference is None:
            raise ConfigurationError(
                f"{request.key('reference')} = None: {streamlines[0]} is a tractogram; must be "
                "the path of an image whose grid the density maps are counted on"
            )
        grid = read_reference(base / request.cohort.reference)
    given = request.cohort.density_dir
    folder = base / given if given is not None else None
    if given is None and dataset_dir is not None:
        folder = inside(dataset_dir, MAPS_FOLDER, kind="folder")
    logger.info(
        "%d tractograms are counted into density maps, kept in %s",
        len(streamlines),
        folder or f"{MAPS_FOLDER} beside each",
    )
    return Counting(grid, folder, request.cohort.vtk_space)
