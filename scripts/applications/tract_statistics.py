"""Measures per subject and tract, with the atlas in the subject's space."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.applications.atlas_to_patient import CARRIED_FOLDER
from scripts.errors import CohortError, ConfigurationError, shown, some_names
from scripts.metrics.tracts import covered_share, weighted_statistics
from scripts.runtime.inside import inside
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import (
    check_replaceable,
    check_writable,
    publish_folder,
)
from scripts.runtime.tables import write_table
from scripts.runtime.watched_files import WatchedFiles, changed
from scripts.settings.tract_stats import TractStatsConfig
from scripts.spatial.fields import read_field_and_grid
from scripts.spatial.grid import Grid
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.mask_rules import require_whole_numbers
from scripts.spatial.volumes import open_image, read_grid, read_volume

__all__ = ["STATISTICS_FOLDER", "TractStatistics"]

logger = logging.getLogger(__name__)

STATISTICS_FOLDER = "tract_statistics"
COLUMNS = ("subject", "tract", "image", "statistic", "value")
_BIGGEST_PLOT = 12  # panels of the picture: more would be unreadable
_LONGEST_LABEL = 40  # characters of a name in the picture: longer ones leave no room for the panels


class TractStatistics:
    """Writes ``<output_dir>/tract_statistics``: a tidy table, its description, a picture.

    A voxel belongs to a tract if the atlas, in the subject's space, is above a fraction of the
    tract's largest value. The atlas weights each image. The folder appears completely or not at
    all.

    Args:
        settings: subjects, images and weights.
        carried_dir: contains ``<subject>/atlas_in_patient_space``, the output of ``carrying``.
        output_dir: destination of the folder.

    Raises:
        CohortError: a subject has no atlas, or an image is missing or on another grid.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(
        self, settings: TractStatsConfig, carried_dir: str | Path, output_dir: str | Path
    ) -> None:
        check_writable(output_dir)
        self.settings = settings
        self.carried = Path(carried_dir)
        self.folder = Path(output_dir) / STATISTICS_FOLDER
        self.subjects = settings.subjects or self._carried_subjects()
        for subject in self.subjects:
            self._check(subject)
        self._tell_of_missing_lesions()
        inputs = [path for one in self.subjects for path in self._files(one).values()]
        check_replaceable(self.folder, inputs=inputs)

    def run(self) -> Path:
        """Measure all subjects.

        Raises:
            CohortError: a file can't be read, or the atlas is empty in a subject's space.
            StorageError: the folder can't be written; an earlier one stays.
        """
        rows: list[dict[str, Any]] = []
        sources: dict[str, Any] = {}
        with progress_bar(len(self.subjects), "tract statistics") as bar:
            for subject in self.subjects:
                files = {n: path for n, path in self._files(subject).items() if path.is_file()}
                watched = WatchedFiles(files.values())
                rows += self._measured(subject)
                watched.check()
                sources[subject] = {
                    name: {"path": str(path), "sha256": watched.sha256(path)}
                    for name, path in files.items()
                }
                bar.update()
        with publish_folder(self.folder) as staging:
            with (staging / "tract_statistics.csv").open("w", newline="", encoding="utf-8") as file:
                write_table(file, COLUMNS, rows)
            about = {
                "columns": {
                    "subject": "name of the subject",
                    "tract": "name or number of the tract",
                    "image": "of tract_stats#images, or atlas, log_jacobian, lesion, density",
                    "statistic": "mean, sd, median and p<percentile>, weighted; volume in mm3; "
                    "load and presence as shares of the tract",
                    "value": "empty where it isn't defined",
                },
                "settings": self.settings.as_dict(),
                "files": sources,
            }
            (staging / "tract_statistics.json").write_text(
                json.dumps(about, indent=1) + "\n", encoding="utf-8"
            )
            _plot(staging / "tract_statistics.png", rows)
        logger.info("%d subjects measured, in %s", len(self.subjects), self.folder)
        return self.folder

    def _carried_subjects(self) -> list[str]:
        if not self.carried.is_dir():
            raise CohortError(
                f"{self.carried}: no such folder; give --carried_dir, the folder that `carry` wrote"
            )
        result = sorted(
            path.name for path in self.carried.iterdir() if (path / CARRIED_FOLDER).is_dir()
        )
        if not result:
            raise CohortError(
                f"{self.carried}: contains no <subject>/{CARRIED_FOLDER}; warp the atlas to the "
                "subjects first (python -m bundle carry)"
            )
        return result

    def _files(self, subject: str) -> dict[str, Path]:
        """All files for a subject's measures, by their name in the table."""
        settings = self.settings
        patterns = {
            **settings.images,
            "lesion": settings.lesions,
            "density": settings.density,
            "log_jacobian": settings.log_jacobian,
        }
        maps = {"atlas": "mean", "weights": settings.weights}
        subfolder = f"{subject}/{CARRIED_FOLDER}"
        return {
            **{
                name: inside(self.carried, f"{subfolder}/atlas_{map_name}.nii.gz")
                for name, map_name in maps.items()
                if map_name != "none"
            },
            **{
                name: Path(pattern.replace("{subject}", subject))
                for name, pattern in patterns.items()
                if pattern is not None
            },
        }

    def _check(self, subject: str) -> None:
        """Refuse missing files and other grids before anything is computed."""
        files = self._files(subject)
        for name in ("atlas", "weights"):
            if name in files and not files[name].is_file():
                raise CohortError(
                    f"subject {subject}: no such atlas {files[name]}; warp it there first "
                    "(python -m bundle carry)"
                )
        grid = read_grid(files["atlas"])
        for name, path in files.items():
            if not path.is_file():
                if name == "lesion":
                    continue
                raise CohortError(f"subject {subject}: no such image {name}: {path}")
            if name not in ("atlas", "weights"):
                file_grid = _field_grid(path) if name == "log_jacobian" else read_grid(path)
                difference = file_grid.same_as(grid)
                if difference is not None and file_grid.order_onto(grid) is None:
                    raise CohortError(
                        f"{path}: is not on the grid of {files['atlas']}: {difference}; run carry "
                        "with this image as --atlas_to_patient#reference, or warp the image"
                    )

    def _tell_of_missing_lesions(self) -> None:
        """Warn of subjects without a lesion mask; refuse a pattern that fits no file at all."""
        pattern = self.settings.lesions
        if pattern is None:
            return
        missing = [one for one in self.subjects if not self._files(one)["lesion"].is_file()]
        if len(missing) == len(self.subjects):
            raise CohortError(
                f"tract_stats.lesions = {pattern!r}: no subject has such a file (there is no "
                f"{self._files(missing[0])['lesion']}); must be the path of each subject's mask, "
                "or null"
            )
        if missing:
            logger.warning(
                "tract_stats#lesions: no file for %s; the table has no lesion load there",
                some_names(missing, most=10),
            )

    def _measured(self, subject: str) -> Iterable[dict[str, Any]]:
        files = self._files(subject)
        atlas, grid = read_volume(files["atlas"])
        weights = read_volume(files["weights"])[0] if "weights" in files else np.ones_like(atlas)
        names = self._tract_names(len(atlas), files["atlas"])
        voxel = float(abs(np.linalg.det(grid.affine[:3, :3])))
        images = {name: _single(files[name], name, grid) for name in self.settings.images}
        if "log_jacobian" in files:
            images["log_jacobian"] = _growth(files["log_jacobian"], grid)
        masks = {}
        if "lesion" in files and files["lesion"].is_file():
            masks["lesion"] = _lesion(files["lesion"], grid)
        if "density" in files:
            masks["density"] = _presence(files["density"], grid, len(atlas))
        for channel, tract in enumerate(names):
            inside_tract = atlas[channel] > self.settings.threshold * atlas[channel].max()
            if not inside_tract.any():
                raise CohortError(
                    f"{files['atlas']}: tract {tract} is empty in the space of subject {subject}; "
                    "check the image that the atlas was warped to, or leave the subject out "
                    "(tract_stats#subjects)"
                )
            share = weights[channel][inside_tract]

            def row(
                image: str, statistic: str, value: float | None, tract: str = tract
            ) -> dict[str, Any]:
                given = "" if value is None else value
                return {"subject": subject, "tract": tract, "image": image,
                        "statistic": statistic, "value": given}  # fmt: skip

            yield row("atlas", "volume", voxel * int(inside_tract.sum()))
            for name, image in images.items():
                measured = weighted_statistics(
                    image[inside_tract], share, self.settings.percentiles
                )
                if name == "log_jacobian":
                    measured = {"mean": measured["mean"]}
                for statistic, value in measured.items():
                    yield row(name, statistic, value)
            for name, mask in masks.items():
                counted = mask[channel if len(mask) > 1 else 0][inside_tract]
                statistic = {"lesion": "load", "density": "presence"}[name]
                yield row(name, statistic, covered_share(counted, np.ones_like(share)))

    def _tract_names(self, channels: int, path: Path) -> list[str]:
        names = self.settings.tracts
        if names is None:
            return [str(number) for number in range(1, channels + 1)]
        if len(names) != channels:
            raise ConfigurationError(
                f"tract_stats.tracts = {names!r}: must have a name for each of the {channels} "
                f"channels of {path}"
            )
        return names


def _single(path: Path, name: str, grid: Grid) -> np.ndarray:
    """Read an image with one channel, ``(X, Y, Z)`` in the order of the grid; may contain NaN."""
    volume, file_grid = read_volume(path, finite=False)
    if len(volume) != 1:
        raise CohortError(f"{path}: image {name} has {len(volume)} channels; must have one")
    return _on_grid(path, volume, file_grid, grid)[0]


def _lesion(path: Path, grid: Grid) -> np.ndarray:
    """Voxels of a lesion, ``(1, X, Y, Z)`` bool in the order of the grid."""
    mask, file_grid = read_volume(path)
    if len(mask) != 1:
        raise CohortError(f"{path}: a lesion mask must have one volume, got {len(mask)}")
    require_whole_numbers(path, mask, "a lesion mask must be whole numbers, not 0 in the lesion")
    return _on_grid(path, mask, file_grid, grid) != 0


def _presence(path: Path, grid: Grid, tracts: int) -> np.ndarray:
    """Where a subject has streamlines, ``(1 or tracts, X, Y, Z)`` bool in the order of the grid."""
    density, file_grid = read_volume(path)
    if len(density) not in (1, tracts):
        raise CohortError(
            f"{path}: has {len(density)} volumes; must have one, or one for each of the {tracts} "
            "tracts"
        )
    return _on_grid(path, density, file_grid, grid) > 0


def _on_grid(path: Path, values: np.ndarray, file_grid: Grid, grid: Grid) -> np.ndarray:
    """Values ``(..., X, Y, Z)`` in the axis order of a grid that has the same voxels."""
    ordered = file_grid.in_order_of(grid, values)
    if ordered is None:
        raise changed(path)
    return ordered


def _field_grid(path: Path) -> Grid:
    """Grid of a displacement field ``(X, Y, Z, 1, 3)``."""
    image = open_image(path).image
    if len(image.shape) != 5 or image.shape[3:] != (1, 3):
        raise CohortError(
            f"{path}: a displacement field must have shape (X, Y, Z, 1, 3), got "
            f"{tuple(image.shape)}"
        )
    return Grid(tuple(image.shape[:3]), np.asarray(image.affine), image.header.copy())


def _growth(path: Path, grid: Grid) -> np.ndarray:
    """Logarithm of the subject's local volume over the template's, ``(X, Y, Z)``.

    The field maps points of the subject to points of the template, so its determinant is the
    template's volume over the subject's. NaN where it folds.
    """
    d = 2 if len(grid.shape) == 2 or grid.shape[2] == 1 else 3
    field, file_grid = read_field_and_grid(path, d)
    determinant = jacobian_determinant(torch.from_numpy(np.ascontiguousarray(field))).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.where(determinant > 0, -np.log(np.abs(determinant)), np.nan)
    return _on_grid(path, growth.reshape((*file_grid.shape, 1)[:3]), file_grid, grid)


def _plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """One panel per image: the mean of each subject in each tract."""
    tracts = list(dict.fromkeys(row["tract"] for row in rows))
    panels: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["statistic"] in ("mean", "volume", "load", "presence") and row["value"] != "":
            panel = panels.setdefault((row["image"], row["statistic"]), {})
            panel.setdefault(row["tract"], []).append(row["value"])
    drawn = list(panels.items())[:_BIGGEST_PLOT]
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for number, ((image, statistic), values) in enumerate(drawn, start=1):
        axis = figure.add_subplot(lines, columns, number)
        places = [index for index, tract in enumerate(tracts) if tract in values]
        axis.boxplot([values[tracts[index]] for index in places], positions=places, widths=0.5)
        unit = {"volume": " (mm³)", "load": " (share)", "presence": " (share)"}.get(statistic, "")
        # Names are text: a $ in them begins no formula.
        title = f"{shown(image)[:_LONGEST_LABEL]}: {statistic}{unit}"
        axis.set_title(title, fontsize=9, parse_math=False)
        names = [shown(tracts[index])[:_LONGEST_LABEL] for index in places]
        axis.set_xticks(places, names, parse_math=False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)
