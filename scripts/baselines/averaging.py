"""The averaging atlas: the five maps of an unregistered cohort, without deformation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scripts.cohort import Cohort, read_cohort
from scripts.cohort.density import subject_density
from scripts.publishing.provenance import code_identity, description_hash, versions_here
from scripts.publishing.sidecars import describe_atlas
from scripts.publishing.statistics import DensityStatistics
from scripts.runtime.lock import locked_folders
from scripts.runtime.storage import check_space, check_writable, file_hash, publish_folder
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.volumes import write_map

__all__ = ["AVERAGING_FOLDER", "AveragingAtlas", "open_averaged_cohort"]

logger = logging.getLogger(__name__)

AVERAGING_FOLDER = "atlas"


def open_averaged_cohort(
    dataset_dir: str | Path, settings: LearnedAtlasConfig, written: Sequence[str | Path] = ()
) -> Cohort:
    """Read and check a cohort for a job that doesn't use a device.

    Args:
        dataset_dir: the dataset folder.
        settings: of the run.
        written: folders that the run will write to; none is created here.

    Raises:
        StorageError: a folder in ``written`` can't be written, or the disk has too little room.
        CohortError: see `read_cohort`.
    """
    for folder in written:
        check_writable(folder)
    cohort = read_cohort(dataset_dir, settings.cohort_request())
    # Float32 without any compression, over the box: maps are 0 outside it.
    voxels = settings.model.channels * math.prod(cohort.crop.shape)
    maps = 4 * len(settings.emit_baseline_maps) * voxels
    for folder in written:
        check_space({Path(folder): {"maps": maps}})
    return cohort


class AveragingAtlas:
    """Publishes mean, std, std_error, cov and prob_threshold of a cohort's densities.

    Densities are read one subject at a time and summed in float64, so that a value equal to
    ``presence_value`` in the file doesn't count as above it through rounding. Memory is that of one
    subject and four accumulators on the cohort's box.

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
            describe_atlas(staging, about)
            about["files"] = {
                path.relative_to(staging).as_posix(): file_hash(path)
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            }
            about["description_sha256"] = description_hash(about)
            (staging / "atlas.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
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
        for subject in self.cohort.subjects:
            statistics.add(crop.crop(subject_density(subject, channels, grid.shape)))
        return statistics.maps(None, self.settings.cov_mean_threshold_pct)

    def _description(self, hashes: dict[str, str]) -> dict[str, Any]:
        """``atlas.json``: the origin of these maps."""
        return {
            "name": "tract_density_atlas",
            "kind": self.kind,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training_space": self.settings.training_space,
            "normalisation": self.cohort.normalisation,
            "presence_value": self.settings.presence_value,
            "cov_mean_threshold_pct": self.settings.cov_mean_threshold_pct,
            "n_subjects": len(self.cohort.subjects),
            "cohort": self.cohort.as_dict(),
            "maps": hashes,
            "settings": self.settings.as_dict(),
            "code": code_identity(),
            "versions": versions_here("nibabel", "numpy"),
        }
