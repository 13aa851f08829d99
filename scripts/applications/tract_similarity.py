"""Compares subjects' maps with the atlas in their space."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.applications.atlas_to_patient import CARRIED_FOLDER
from scripts.applications.leave_one_out import OthersAverage
from scripts.cohort import Cohort
from scripts.cohort.density import subject_density
from scripts.errors import CohortError
from scripts.metrics.similarity import (
    correlation_metrics,
    distance_metrics,
    distribution_metrics,
    overlap_metrics,
    present,
)
from scripts.runtime.inside import inside
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_replaceable, publish_folder
from scripts.runtime.tables import write_table
from scripts.runtime.watched_files import WatchedFiles, changed
from scripts.settings.applications import TractSimilarityConfig
from scripts.spatial.grid import Grid
from scripts.spatial.volumes import read_grid, read_volume

__all__ = ["SWEEP", "TractSimilarity", "similarity"]

logger = logging.getLogger(__name__)


SWEEP = tuple(round(0.05 + 0.025 * step, 3) for step in range(19))
"""Thresholds of the sweep, as fractions of the maximum: 0.05 to 0.50."""
FOLDER = "tract_similarity"


def similarity(
    subject: np.ndarray,
    atlas: np.ndarray,
    spacing: tuple[float, ...],
    settings: TractSimilarityConfig,
) -> dict[str, Any]:
    """All measures for two densities ``(*shape)`` on one grid."""
    subject_map, other = (
        present(m, settings.threshold, settings.threshold_mode) for m in (subject, atlas)
    )
    union = subject_map | other
    return {
        "overlap": overlap_metrics(subject_map, other),
        "correlation": {
            "union": correlation_metrics(subject, atlas, union),
            "own_support": correlation_metrics(subject, atlas, subject_map),
        },
        "distance_mm": distance_metrics(subject_map, other, spacing),
        "distribution": distribution_metrics(subject, atlas, union, settings.bins),
    }


class TractSimilarity:
    """Writes ``<output_dir>/tract_similarity``: metrics of each subject, table, sweep, plot.

    The folder appears completely or not at all. Channels are compared one by one.

    Args:
        cohort: subjects to compare.
        channels: of their maps.
        carried_dir: contains ``<subject>/atlas_in_patient_space/atlas_mean.nii.gz``.
        settings: thresholds, bins, leave-one-out.
        output_dir: where the folder goes.

    Raises:
        CohortError: a subject has no atlas, or one on another grid; see also `OthersAverage`.
    """

    def __init__(
        self,
        cohort: Cohort,
        channels: int,
        carried_dir: str | Path,
        settings: TractSimilarityConfig,
        output_dir: str | Path,
    ) -> None:
        self.cohort = cohort
        self.channels = channels
        self.carried = Path(carried_dir)
        self.settings = settings
        self.folder = Path(output_dir) / FOLDER
        carried = [self._atlas_file(subject.name) for subject in cohort.subjects]
        check_replaceable(self.folder, inputs=[*cohort.files(), *carried])
        for subject in cohort.subjects:
            if not self._atlas_file(subject.name).is_file():
                raise CohortError(
                    f"subject {subject.name}: no such atlas {self._atlas_file(subject.name)}; "
                    "make it first (python -m bundle carry)"
                )
            self._check_grid(subject.name)
        self.others: OthersAverage | None = None
        if settings.leave_one_out:
            folders = [self._atlas_file(subject.name).parent for subject in cohort.subjects]
            self.others = OthersAverage(cohort, channels, folders)

    def run(self) -> Path:
        """Compare all subjects.

        Raises:
            CohortError: an atlas has other channels than its subject, or no voxel in common with
            it.
            StorageError: the folder can't be written; an earlier one stays.
        """
        rows: list[dict[str, Any]] = []
        sweep: dict[str, list[float]] = {}
        if self.others is not None:
            self.others.gather()
        with (
            publish_folder(self.folder) as staging,
            progress_bar(len(self.cohort.subjects), "comparison") as bar,
        ):
            for index, subject in enumerate(self.cohort.subjects):
                density = subject_density(subject, self.channels, self.cohort.grid.shape)
                watched = WatchedFiles([self._atlas_file(subject.name)])
                atlas = self._atlas(subject.name)
                watched.check()
                if not ((density > 0) & (atlas > 0)).any():
                    raise CohortError(
                        f"subject {subject.name}: its map and {self._atlas_file(subject.name)} "
                        "have no voxel in common; was the atlas warped to another space?"
                    )
                self._warn_of_tracts_apart(subject.name, density, atlas)
                rest = None if self.others is None else self.others.average(index)
                entries = []
                for channel, (subject_map, other) in enumerate(zip(density, atlas, strict=True)):
                    entry = self._compared(
                        subject_map, other, channel, None if rest is None else rest[channel]
                    )
                    entries.append(entry)
                    tract = self._tract(channel)
                    sweep[f"{subject.name} {tract}".strip()] = entry["sweep"]["dice"]
                    rows.append({"subject": subject.name, "tract": tract, **_flat(entry)})
                report = {
                    "subject": subject.name,
                    "settings": self.settings.as_dict(),
                    "maps": [{"path": str(one.path), "sha256": one.sha256} for one in subject.maps],
                    "atlas": {
                        "path": str(self._atlas_file(subject.name)),
                        "sha256": watched.sha256(self._atlas_file(subject.name)),
                    },
                    "tracts": entries,
                }
                (staging / subject.name).mkdir()
                _write_json(staging / subject.name / "metrics.json", report)
                bar.update()
            with (staging / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
                write_table(file, list(rows[0]), rows)
            mean = np.mean(list(sweep.values()), axis=0)
            best = int(mean.argmax())
            summary = {
                "thresholds": list(SWEEP),
                "mean_dice": mean.tolist(),
                "best": {"threshold": SWEEP[best], "dice": float(mean[best])},
            }
            _write_json(staging / "sweep.json", summary)
            _plot(staging / "sweep.png", sweep, mean)
        logger.info("%d subjects compared, in %s", len(self.cohort.subjects), self.folder)
        return self.folder

    def _compared(
        self, subject_map: np.ndarray, other: np.ndarray, channel: int, rest: np.ndarray | None
    ) -> dict[str, Any]:
        spacing = self.cohort.grid.spacing
        overlaps = [
            float(overlap_metrics(present(subject_map, t), present(other, t))["dice"] or 0.0)
            for t in SWEEP
        ]
        best = int(np.argmax(overlaps))
        entry: dict[str, Any] = {
            "tract": self._tract(channel),
            **similarity(subject_map, other, spacing, self.settings),
        }
        if rest is not None:
            entry["leave_one_out"] = similarity(subject_map, rest, spacing, self.settings)
        entry["sweep"] = {
            "thresholds": list(SWEEP),
            "dice": overlaps,
            "best": {"threshold": SWEEP[best], "dice": overlaps[best]},
        }
        return entry

    def _warn_of_tracts_apart(self, subject: str, density: np.ndarray, atlas: np.ndarray) -> None:
        for channel, (subject_map, other) in enumerate(zip(density, atlas, strict=True)):
            if subject_map.any() and other.any() and not ((subject_map > 0) & (other > 0)).any():
                logger.warning(
                    "subject %s: its map and the atlas of tract %s have no voxel in common; are "
                    "they the same tract, in the same space?", subject, self._tract(channel),
                )  # fmt: skip

    def _tract(self, channel: int) -> str:
        return self.cohort.tracts[channel] if self.cohort.tracts else ""

    def _atlas_file(self, subject: str) -> Path:
        return inside(self.carried, f"{subject}/{CARRIED_FOLDER}/atlas_mean.nii.gz")

    def _check_grid(self, subject: str) -> None:
        """Refuse an atlas on another grid before anything is computed."""
        path, subject_grid = self._atlas_file(subject), self.cohort.grid
        grid = self._of_cohorts_axes(read_grid(path))
        difference = grid.same_as(subject_grid)
        if difference is not None and grid.order_onto(subject_grid) is None:
            raise CohortError(
                f"{path}: is not on the grid of subject {subject}: {difference}; run python -m "
                "bundle carry with the subject's map as --atlas_to_patient#reference"
            )

    def _of_cohorts_axes(self, grid: Grid) -> Grid:
        """The grid of a plane with two axes if the cohort's has two."""
        if len(self.cohort.grid.shape) == 2 and grid.shape[2] == 1:
            return Grid(grid.shape[:2], grid.affine, grid.header)
        return grid

    def _atlas(self, subject: str) -> np.ndarray:
        path = self._atlas_file(subject)
        volume, grid = read_volume(path)
        if len(volume) != self.channels:
            raise CohortError(
                f"{path}: has {len(volume)} channels, the subject has {self.channels}; set "
                "learned_atlas#model#channels and learned_atlas#cohort#tracts as for the atlas"
            )
        grid = self._of_cohorts_axes(grid)
        ordered = grid.in_order_of(self.cohort.grid, volume.reshape(self.channels, *grid.shape))
        if ordered is None:
            raise changed(path)
        return np.ascontiguousarray(ordered)


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: nested names joined by dots, sweeps by their best value."""
    row: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "sweep":
            row |= {f"best_{name}": number for name, number in value["best"].items()}
        elif isinstance(value, dict):
            row |= {f"{key}.{name}": number for name, number in _flat(value).items()}
        elif key != "tract":
            row[key] = value
    return row


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plot(path: Path, sweep: dict[str, list[float]], mean: np.ndarray) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for values in sweep.values():
        axis.plot(SWEEP, values, color="#9ab", linewidth=0.8)
    axis.plot(SWEEP, mean, color="#b00020", linewidth=2, label=f"mean of {len(sweep)}")
    axis.set(xlabel="threshold, fraction of each map's maximum", ylabel="Dice", ylim=(0, 1))
    axis.legend()
    figure.savefig(path, dpi=110)
