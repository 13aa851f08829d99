"""The job `labelling`: from an atlas and a subject's tractogram to labelled tractograms."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import ConfigurationError
from scripts.networks.precision import open_device
from scripts.runtime.file_names import ending_of
from scripts.runtime.lock import locked_folders
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_replaceable, check_writable, publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.label_transfer import LabelTransferConfig
from scripts.spatial.grid import Grid
from scripts.spatial.overlap import extent
from scripts.spatial.volumes import read_reference, write_density
from scripts.tractograms import (
    ARRAY,
    Streamlines,
    TractogramError,
    open_tractogram,
    write_tractogram,
)
from scripts.tractograms.density import DensityCounter
from scripts.transport.features import Features, fibre_features
from scripts.transport.labelling import OUTLIER, Labelling, label_fibres
from scripts.transport.picture import draw_classes
from scripts.transport.segmented_atlas import (
    SegmentedAtlas,
    file_names,
    read_atlas,
    read_streamlines,
)

__all__ = ["FOLDER", "LabelTransfer"]

logger = logging.getLogger(__name__)

FOLDER = "labels"
_WRITTEN = ("label", "mass")  # per-streamline values of the labelled tractogram


class LabelTransfer:
    """Labels a subject's streamlines and publishes ``<output_dir>/labels``, completely or not at
    all.

    Args:
        atlas: see `read_atlas`.
        subject: tractogram to label.
        settings: of the transfer.
        output_dir: destination of the folder.
        reference: image whose grid is used for a density map per class; None: no maps.

    Raises:
        ConfigurationError: atlas or subject isn't given, or the device doesn't exist.
        StorageError: ``output_dir`` can't be written, or another run is using it.
    """

    def __init__(
        self,
        atlas: str | None,
        subject: str | None,
        settings: LabelTransferConfig,
        output_dir: str | Path,
        reference: str | None = None,
    ) -> None:
        for name, value in (("atlas", atlas), ("subject", subject)):
            if not isinstance(value, str | Path) or not str(value).strip():
                raise ConfigurationError(f"{name} = {value!r}: must be a path; give --{name} FILE")
        open_device(settings.device, settings.key("device"))
        self.atlas, self.subject = Path(str(atlas)), Path(str(subject))
        self.settings = settings
        self.folder = Path(output_dir) / FOLDER
        self.reference = reference
        check_writable(output_dir)
        reference_files = [] if reference is None else [reference]
        check_replaceable(self.folder, inputs=[self.atlas, self.subject, *reference_files])

    def publish(self) -> Path:
        """Read, transport, write.

        Returns:
            The folder.

        Raises:
            TractogramError: a tractogram can't be read, or the atlas has no usable class.
            CohortError: the reference can't be read.
            StorageError: a file can't be written; an earlier folder stays.
        """
        with locked_folders(self.folder.parent):
            return self._publish()

    def _publish(self) -> Path:
        given = (self.atlas, self.subject, *([self.reference] if self.reference else ()))
        watched = WatchedFiles(path for path in given if Path(path).is_file())
        grid = None if self.reference is None else read_reference(self.reference)
        space = self.settings.vtk_space
        atlas = read_atlas(self.atlas, self.settings.labels, self.settings.names, space)
        of_atlas = self._features(atlas.streamlines)
        atlas = _usable(self.atlas, atlas, of_atlas)
        source = open_tractogram(self.subject, space)
        subject = _with_room_for_labels(self.subject, read_streamlines(source, per_point=True))
        of_subject = self._features(subject)
        shape, affine = source.source.shape, source.source.affine
        if shape is None and grid is not None:
            shape, affine = grid.shape, grid.affine
        self._check_format(subject, of_subject, shape)
        self._check_together(subject, atlas, grid)

        with _percent("labels") as progress:
            labelling = label_fibres(
                of_subject.vectors, of_atlas.vectors, atlas.classes, self.settings, progress
            )
        classes = np.full(len(subject), OUTLIER, dtype=np.int64)
        classes[of_subject.kept] = labelling.classes
        largest = np.zeros(len(subject), dtype=np.float32)
        largest[of_subject.kept] = labelling.largest

        if not (classes >= 0).any() and len(of_subject.kept):
            logger.warning(
                "%s: no streamline is like any of the atlas %s; do they belong to the same space?",
                self.subject, self.atlas,
            )  # fmt: skip
        with publish_folder(self.folder) as staging:
            files = self._write_tractograms(
                staging, subject, classes, largest, atlas, shape, affine
            )
            if grid is not None:
                _write_maps(staging, subject, classes, files, grid)
            self._draw(staging, of_subject, labelling, atlas)
            about = self._description(
                atlas, of_atlas, of_subject, classes, labelling, files, watched
            )
            text = json.dumps(about, indent=1, allow_nan=False) + "\n"
            (staging / "labels.json").write_text(text, encoding="utf-8")
            watched.check()
        logger.info(
            "%d of %d streamlines labelled with %d classes, in %s",
            int((classes >= 0).sum()),
            len(subject),
            len(np.unique(classes[classes >= 0])),
            self.folder,
        )
        return self.folder

    def _features(self, streamlines: Streamlines) -> Features:
        return fibre_features(streamlines, self.settings.n_points, self.settings.end_weight)

    @property
    def _suffix(self) -> str:
        if self.settings.format:
            return f".{self.settings.format}"
        ending = ending_of(self.subject).removesuffix(".gz")
        return ".vtk" if ending == ".fib" else ending or self.subject.suffix.lower()

    def _check_format(
        self, subject: Streamlines, features: Features, shape: tuple[int, ...] | None
    ) -> None:
        if shape is None and self._suffix in (".trk", ".trx"):
            raise ConfigurationError(
                f"label_transfer.format = {self._suffix[1:]!r}: such a file records the grid of "
                f"an image, and {self.subject} has none; must come with --reference IMAGE, or "
                "be tck or vtk"
            )
        if subject.point_data and self._suffix in (".tck", ARRAY):
            raise TractogramError(
                self.subject,
                f"has values per point ({', '.join(subject.point_data)}), for which "
                f"{self._suffix} has no room; choose another format with --label_transfer#format",
            )
        broken = features.degenerate["not_finite"]
        if broken and self._suffix == ".tck":
            raise TractogramError(
                self.subject,
                f"has {broken} streamlines with points that are not finite, which TCK can't store; "
                "choose another format with --label_transfer#format",
            )

    def _check_together(
        self, subject: Streamlines, atlas: SegmentedAtlas, grid: Grid | None
    ) -> None:
        """Refuse a subject that shares no space with the atlas or with the reference.

        Raises:
            TractogramError: with where they lie.
        """
        ours, theirs = (
            one.points[np.isfinite(one.points).all(axis=1)] for one in (subject, atlas.streamlines)
        )
        if not len(ours) or not len(theirs):
            return
        gap = np.maximum(
            ours.min(axis=0) - theirs.max(axis=0), theirs.min(axis=0) - ours.max(axis=0)
        )
        if gap.max() > self.settings.reach:
            raise TractogramError(
                self.subject,
                f"shares no space with the atlas {self.atlas}: it lies in {extent(ours)}, the "
                f"atlas in {extent(theirs)} (x, y, z); register it to the atlas's space first",
            )
        if grid is None:
            return
        counter = DensityCounter(grid.shape, grid.affine)
        finite = np.ones(len(subject), dtype=bool)
        finite[subject.owners[~np.isfinite(subject.points).all(axis=1)]] = False
        counter.add(subject.take(finite))
        if counter.streamlines and counter.missed == counter.streamlines:
            raise TractogramError(
                self.subject,
                f"none of {counter.streamlines} streamlines touches the grid of the reference "
                f"{self.reference}: do they belong to the same space?",
            )

    def _write_tractograms(
        self,
        staging: Path,
        subject: Streamlines,
        classes: np.ndarray,
        largest: np.ndarray,
        atlas: SegmentedAtlas,
        shape: tuple[int, ...] | None,
        affine: np.ndarray | None,
    ) -> tuple[str, ...]:
        """Write the labelled tractogram, and one for each class with streamlines."""
        labels = np.where(classes >= 0, atlas.ids[classes], OUTLIER)
        labelled = subject.with_data(label=labels.astype(np.int64), mass=largest)
        files = file_names(atlas.names)
        members = {name: np.flatnonzero(classes == c) for c, name in enumerate(files)}
        groups = {name: who for name, who in members.items() if len(who)}
        whole = staging / f"labelled{self._suffix}"
        try:
            trx = self._suffix == ".trx"
            write_tractogram(whole, labelled, shape, affine, groups if trx else None)
            (staging / "classes").mkdir()
            outliers = {"outliers": np.flatnonzero(classes == OUTLIER)}
            for name, who in (groups | outliers).items():
                place = staging / (name if name == "outliers" else f"classes/{name}")
                target = place.with_name(place.name + self._suffix)
                write_tractogram(target, labelled.take(who), shape, affine)
        except ValueError as error:  # more values, or longer names, than the format allows
            raise TractogramError(
                self.subject, f"{error}; choose another format with --label_transfer#format"
            ) from error
        return files

    def _draw(
        self, staging: Path, features: Features, labelling: Labelling, atlas: SegmentedAtlas
    ) -> None:
        lines = features.vectors.reshape(-1, self.settings.n_points, 3).copy()
        lines *= np.sqrt(self.settings.n_points)
        lines[:, [0, -1]] /= self.settings.end_weight
        labelled = int((labelling.classes >= 0).sum())
        title = f"{self.subject.name}: {labelled:,} of {features.count:,} streamlines labelled"
        draw_classes(staging / "labels.png", lines, labelling.classes, atlas.names, title)

    def _description(
        self,
        atlas: SegmentedAtlas,
        of_atlas: Features,
        of_subject: Features,
        classes: np.ndarray,
        labelling: Labelling,
        files: tuple[str, ...],
        watched: WatchedFiles,
    ) -> dict[str, Any]:
        """``labels.json``: counts and masses, and their origin."""
        counts = np.bincount(classes[classes >= 0], minlength=len(files))
        in_atlas = np.bincount(atlas.classes, minlength=len(files))
        weights = in_atlas / in_atlas.sum()
        degenerate = of_subject.degenerate
        return {
            "classes": [
                {
                    "id": int(atlas.ids[c]),
                    "name": atlas.names[c],
                    "file": f"classes/{files[c]}{self._suffix}" if counts[c] else None,
                    "count": int(counts[c]),
                    "mass": float(labelling.masses[c]),
                    "atlas_count": int(in_atlas[c]),
                    "atlas_weight": float(weights[c]),
                }
                for c in range(len(files))
            ],
            "outliers": {
                "count": int((classes == OUTLIER).sum()),
                "degenerate": degenerate,
                "below_threshold": int((labelling.classes == OUTLIER).sum()),
            },
            "subject": _described(self.subject, of_subject, watched),
            "atlas": {
                **_described(self.atlas, of_atlas, watched),
                "unlabelled": atlas.unlabelled,
            },
            "reference": self.reference,
            "solver": labelling.solver,
            "settings": self.settings.as_dict(),
            "versions": {name: version(name) for name in ("nibabel", "numpy", "torch")},
        }


def _with_room_for_labels(path: Path, subject: Streamlines) -> Streamlines:
    """The values of the input, renamed if the job writes values of the same names."""
    named: dict[str, np.ndarray] = {}
    for name, values in subject.data.items():
        new, number = name, 1
        while new in _WRITTEN or (new != name and new in subject.data) or new in named:
            new = f"{name}_before" if number == 1 else f"{name}_before{number}"
            number += 1
        if new != name:
            logger.warning(
                "%s: the per-streamline value %s of the input is kept as %s", path, name, new
            )
        named[new] = values
    return replace(subject, data=named)


def _usable(path: Path, atlas: SegmentedAtlas, features: Features) -> SegmentedAtlas:
    """The atlas's streamlines that have a vector; a class without any is dropped."""
    if not len(features.kept):
        raise TractogramError(path, "has no usable streamline with a class")
    if features.count > len(features.kept):
        logger.warning(
            "%s: %d streamlines left out (%s)",
            path,
            features.count - len(features.kept),
            ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in features.degenerate.items()),
        )
    present, classes = np.unique(atlas.classes[features.kept], return_inverse=True)
    return SegmentedAtlas(
        atlas.streamlines,
        classes.astype(np.int64),
        atlas.ids[present],
        tuple(atlas.names[c] for c in present),
        atlas.unlabelled,
    )


def _write_maps(
    staging: Path, subject: Streamlines, classes: np.ndarray, files: tuple[str, ...], grid: Grid
) -> None:
    """Number of streamlines through each voxel, one map per class, including empty ones."""
    (staging / "density").mkdir()
    for c, name in enumerate(files):
        counter = DensityCounter(grid.shape, grid.affine)
        counter.add(subject.take(np.flatnonzero(classes == c)))
        write_density(staging / "density" / f"{name}.nii.gz", counter.density, grid)


def _described(path: Path, features: Features, watched: WatchedFiles) -> dict[str, Any]:
    return {
        "path": str(path),
        "sha256": watched.sha256(path) if path.is_file() else None,
        "streamlines": features.count,
        "degenerate": features.degenerate,
    }


@contextmanager
def _percent(what: str) -> Iterator[Callable[[float], Callable[[float], None]]]:
    """A progress bar in whole percents of a total that is known later."""
    with progress_bar(100, what) as bar:
        done = 0.0

        def begin(total: float) -> Callable[[float], None]:
            def step(share: float) -> None:
                nonlocal done
                done += 100 * share / total
                bar.update(min(100, round(done)) - bar.n)

            return step

        yield begin
