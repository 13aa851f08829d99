"""The averaging atlas: the five maps of an unregistered cohort, without deformation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scripts.cohort import Cohort, Subject, read_cohort
from scripts.cohort.density import subject_density
from scripts.publishing.description import description, write_description
from scripts.publishing.statistics import DensityStatistics
from scripts.runtime.lock import locked_folders
from scripts.runtime.ordered_map import ordered_map, reading_threads
from scripts.runtime.storage import check_replaceable, check_writable, file_hash, publish_folder
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.volumes import write_map

__all__ = ["AVERAGING_FOLDER", "AveragingAtlas", "open_averaged_cohort"]

logger = logging.getLogger(__name__)

AVERAGING_FOLDER = "atlas"


def open_averaged_cohort(
    dataset_dir: str | Path,
    settings: LearnedAtlasConfig,
    written: Sequence[str | Path] = (),
    replaced: Sequence[str | Path] = (),
) -> Cohort:
    """Read and check a cohort for a job that doesn't use a device.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: folders that the run will write to; none is created here.
        replaced: folders that the run will replace, see `check_replaceable`.

    Raises:
        StorageError: if something that is not a writable folder stands in the way of ``written``,
            or ``replaced`` holds other files or the cohort's.
        CohortError: see `read_cohort`.
    """
    for folder in written:
        check_writable(folder)
    for folder in replaced:
        check_replaceable(folder, inputs=[dataset_dir])
    cohort = read_cohort(dataset_dir, settings.cohort_request().without_labels())
    for folder in replaced:
        check_replaceable(folder, inputs=cohort.files())
    return cohort


class AveragingAtlas:
    """Publishes mean, std, std_error, cov and prob_threshold of a cohort's densities.

    Densities are read in a few threads and summed in the cohort's order, in float64, so that a
    value equal to ``presence_value`` in the file doesn't count as above it through rounding. Memory
    is that of a few subjects and four accumulators on the cohort's box.

    Args:
        cohort: the checked subjects.
        settings: emit_baseline_maps, presence_value and cov_mean_threshold_pct are used.
        output_dir: the maps go to its folder ``atlas``.
    """

    kind: ClassVar[str] = "averaged"
    folder_name: ClassVar[str] = AVERAGING_FOLDER

    def __init__(
        self, cohort: Cohort, settings: LearnedAtlasConfig, output_dir: str | Path
    ) -> None:
        self.cohort = cohort
        self.settings = settings
        self.folder = Path(output_dir) / self.folder_name

    def publish(self) -> Path:
        """Write the atlas.

        Returns:
            Its folder.

        Raises:
            CohortError: a map changed after it was checked; nothing is published then.
            StorageError: a file can't be written, or another run is using the folder; the earlier
                atlas stays.
        """
        with locked_folders(self.folder.parent):
            return self._publish()

    def _publish(self) -> Path:
        maps = self._maps()
        grid, crop = self.cohort.grid, self.cohort.crop
        with publish_folder(self.folder) as staging:
            hashes = {}
            for name in self.settings.emit_baseline_maps:
                path = staging / f"atlas_{name}.nii.gz"
                write_map(path, crop.paste(maps[name], grid.shape), grid)
                hashes[path.name] = file_hash(path)
            about = self._description(hashes)
            write_description(staging, about)
        logger.info(
            "%s atlas of %d subjects published in %s",
            self.kind,
            len(self.cohort.subjects),
            self.folder,
        )
        return self.folder

    def _maps(self) -> dict[str, np.ndarray]:
        """The five maps on the cohort's box."""
        grid, crop = self.cohort.grid, self.cohort.crop
        channels = self.settings.model.channels
        statistics = DensityStatistics((channels, *crop.shape), self.settings.presence_value)

        def read(subject: Subject) -> np.ndarray:
            return crop.crop(subject_density(subject, channels, grid.shape))

        for _, density in ordered_map(read, self.cohort.subjects, reading_threads()):
            statistics.add(density)
        return statistics.maps(None, self.settings.cov_mean_threshold_pct)

    def _description(self, hashes: dict[str, str]) -> dict[str, Any]:
        """``atlas.json``: the origin of these maps."""
        packages = ("nibabel", "numpy")
        return description(self.kind, self.cohort, self.settings, {"maps": hashes}, packages)
