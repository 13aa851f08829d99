"""One pass over the subjects: fields, warped densities, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from scripts.errors import StorageError, TractAtlasError
from scripts.metrics.misfit import MISFIT_WINDOW, local_misfit
from scripts.publishing.quality_page import SubjectQuality
from scripts.publishing.statistics import DensityStatistics
from scripts.publishing.subject_computation import ComputedSubject, SubjectComputation
from scripts.publishing.subject_maps import WARPED_FOLDER
from scripts.publishing.viewer_volumes import ViewedSubject, ViewerGrid, WorstSubjects
from scripts.runtime.ordered_map import ordered_map
from scripts.runtime.processes import (
    add_up,
    barrier,
    collected_by_first,
    is_first,
    rank,
    stop_together,
    world_size,
)
from scripts.runtime.storage import file_hash
from scripts.runtime.torch_threads import divided_threads, subjects_at_once
from scripts.runtime.write_behind import WriteBehind
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.label_fusion import LabelSums

__all__ = ["Emission", "Emitted", "naming"]


T = TypeVar("T")

_AT_ONCE = 8_000_000  # voxels of the subjects that are computed at once: a gibibyte at most
_SHOWN = 3  # subjects that the quality page draws


class Progress(Protocol):
    """A bar."""

    def update(self) -> Any:
        """One more is done."""
        ...

    def close(self) -> None:
        """All are done."""
        ...


@dataclass
class Emitted:
    """Results of one pass over the subjects.

    Attributes:
        statistics: one per template.
        jacobians: by subject and direction.
        moves: displacements over all subjects.
        subjects: for the quality page.
        pictures: of the subjects on the quality page.
        grids: their fields.
        viewed: subjects in the page's viewer.
        hashes: SHA-256 of the field files, by name.
        maps: kinds of maps in template space that were written, by subject.
        labels: sums of the subjects' labels, one per template; empty without labels.
    """

    statistics: list[DensityStatistics]
    jacobians: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    moves: dict[str, float] = field(default_factory=dict)
    subjects: list[SubjectQuality] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    grids: dict[str, np.ndarray] = field(default_factory=dict)
    viewed: WorstSubjects = field(default_factory=WorstSubjects)
    hashes: dict[str, str] = field(default_factory=dict)
    maps: dict[str, list[str]] = field(default_factory=dict)
    labels: list[LabelSums] = field(default_factory=list)

    def merge(self, other: Emitted) -> None:
        """Add the results of another process."""
        for mine, theirs in zip(self.statistics, other.statistics, strict=True):
            mine.merge(theirs)
        self.jacobians |= other.jacobians
        self.subjects += other.subjects
        self.pictures |= other.pictures
        self.grids |= other.grids
        self.viewed.add(other.viewed.kept)
        self.hashes |= other.hashes
        self.maps |= other.maps
        for fused, others in zip(self.labels, other.labels, strict=True):
            fused.merge(others)

    def sort(self, names: Sequence[str]) -> None:
        """Sort everything into the order of the cohort."""
        place = {name: index for index, name in enumerate(names)}
        self.subjects.sort(key=lambda one: place[one["subject"]])
        self.jacobians = _in_order(self.jacobians, place)
        self.pictures = _in_order(self.pictures, place)
        self.grids = _in_order(self.grids, place)
        self.maps = _in_order(self.maps, place)


class Emission:
    """The pass over the subjects.

    Over several processes each one takes every n-th subject. Small subjects are computed several at
    once, and added in their order, so that the results don't depend on how many.

    Args:
        computation: of one subject; it has the network, the cohort and the settings.
        bar: makes a progress bar for so many subjects.
    """

    def __init__(self, computation: SubjectComputation, bar: Any = None) -> None:
        self.computation = computation
        self.network = computation.network
        self.cohort = computation.cohort
        self.settings = computation.settings
        self.templates = computation.templates
        self.device = computation.device
        self.bar = bar
        self.view = ViewerGrid.of(self.cohort.grid, self.cohort.crop, self.network.log_offset)

    @torch.no_grad()
    def run(self, staging: Path, folder: Path) -> Emitted:
        """Statistics, fields, Jacobians and displacements of all subjects.

        Args:
            staging: where the fields are written.
            folder: where the atlas will be, for messages.

        Returns:
            in the first process that of all processes, in the others their own.
        """
        grid = self.cohort.grid
        shape = (self.network.channels, *grid.shape)
        emitted = Emitted(
            [
                DensityStatistics(shape, self.settings.presence_value)
                for _ in range(self.network.n_templates)
            ]
        )
        if self.cohort.labels is not None:
            emitted.labels = [LabelSums(grid.shape) for _ in range(self.network.n_templates)]
        # Sum of the fields, and of their mean squared lengths.
        moves = (
            torch.zeros(len(grid.shape), *grid.shape, device=self.device),
            torch.zeros(1, dtype=torch.float64),
        )
        subjects = len(self.cohort.subjects)
        bar: Progress | None = (
            self.bar(-(-subjects // world_size()), "emission") if self.bar else None
        )
        if is_first():
            with naming(folder):
                for name, wanted in (
                    ("fields", self.settings.save_fields),
                    (WARPED_FOLDER, self.computation.maps.any),
                ):
                    if wanted:
                        (staging / name).mkdir()
        barrier()
        at_once = subjects_at_once(math.prod(grid.shape), self.device, _AT_ONCE)
        computed = ordered_map(self.computation, range(rank(), subjects, world_size()), at_once)
        with (
            closing(bar) if bar is not None else nullcontext(),
            divided_threads(at_once),
            WriteBehind() as behind,
            closing(computed),
        ):
            # In step, so that a field which fails anywhere ends the run at once.
            for first in range(0, subjects, world_size()):
                error: TractAtlasError | None = None
                try:
                    with naming(folder):
                        if first + rank() < subjects:
                            index, subject = next(computed)
                            self._gather(index, subject, staging, emitted, moves, behind)
                        if first + world_size() >= subjects:
                            behind.finish()
                except TractAtlasError as failure:
                    error = failure
                stop_together(error)
                if bar is not None:
                    bar.update()
        add_up(*moves)
        local = emitted
        for part in collected_by_first(local):
            if part is not local:
                emitted.merge(part)
        emitted.sort([subject.name for subject in self.cohort.subjects])
        support = torch.as_tensor(
            np.any([s.sample_mean > 0 for s in emitted.statistics], axis=(0, 1)),
            device=self.device,
        )
        mean = (moves[0] / subjects).square().sum(0)
        emitted.moves = {
            "mean_displacement_rms_voxels": float(mean[support].mean().sqrt()),
            "displacement_rms_voxels": float(moves[1] / subjects) ** 0.5,
        }
        return emitted

    def _gather(
        self,
        index: int,
        computed: ComputedSubject,
        staging: Path,
        emitted: Emitted,
        moves: tuple[torch.Tensor, torch.Tensor],
        behind: WriteBehind,
    ) -> None:
        """Add one subject to the results and have its files written."""
        crop, k = self.cohort.crop, computed.assigned
        name, registration = self.cohort.subjects[index].name, computed.registration
        for template, weight, density in computed.densities:
            emitted.statistics[template].add(density, weight)
        emitted.jacobians[name] = registration.jacobian
        if self.settings.save_fields:
            fields = (registration.to_template, registration.to_subject)
            for file, field in zip(field_names(name), fields, strict=True):
                displacement = field[0].cpu().numpy()
                path = staging / "fields" / file
                behind.write(self._write_field, path, displacement, emitted.hashes)
        if computed.labels is not None:
            emitted.labels[k].add(computed.labels)
        if computed.maps:
            emitted.maps[name] = list(computed.maps)
            subfolder = f"template-{k + 1}/" if self.network.n_templates > 1 else ""
            reference = f"bids::{subfolder}atlas_mean.nii.gz"
            behind.write(
                self.computation.maps.write,
                staging / WARPED_FOLDER,
                name,
                computed.maps,
                reference,
            )
        moves[0].add_(registration.to_template[0])
        moves[1].add_(computed.mean_square)
        emitted.subjects.append(computed.quality)
        self._view(index, computed, emitted)
        if index < _SHOWN:
            emitted.pictures[name] = computed.inside.cpu().numpy()
            emitted.grids[name] = crop.crop(registration.to_template[0]).cpu().numpy()

    def _view(self, index: int, computed: ComputedSubject, emitted: Emitted) -> None:
        """Keep the volumes of a subject if it is among the worst so far."""
        measured = computed.quality
        correlation = measured["correlation"]
        order = (
            measured["smallest_jacobian"] > 0,
            correlation if np.isfinite(correlation) else -1.0,
            index,
        )
        if not emitted.viewed.wants(order):
            return
        name, crop = measured["subject"], self.cohort.crop
        to_template = computed.registration.to_template[0]
        growth = jacobian_determinant(to_template)
        fitted = crop.crop(computed.density)
        misfit = local_misfit(
            fitted,
            self.templates.density[computed.assigned].cpu().numpy(),
            self.network.log_offset,
            MISFIT_WINDOW,
        )
        layers = self.view.of_subject(
            name,
            fitted,
            computed.inside.cpu().numpy(),
            crop.crop(to_template).cpu().numpy(),
            crop.crop(growth).cpu().numpy(),
            misfit,
        )
        emitted.viewed.add([ViewedSubject(name, order, layers)])

    def _write_field(self, path: Path, displacement: np.ndarray, hashes: dict[str, str]) -> None:
        write_field(path, displacement, self.cohort.grid)
        hashes[f"fields/{path.name}"] = file_hash(path)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """What the system says of a file as an error that names the folder to be published.

    Raises:
        StorageError: in its place.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: can't be published: {error}") from error


def _in_order(table: dict[str, T], place: dict[str, int]) -> dict[str, T]:
    return {name: table[name] for name in sorted(table, key=place.__getitem__)}
