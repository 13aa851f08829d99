"""One pass over the subjects: fields, warped densities, and their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from scripts.atlas.network import AtlasNetwork, density_of, log_density_of
from scripts.atlas.registration import Registration, fields_of
from scripts.cohort import Cohort
from scripts.errors import FoldingError, StorageError, TractAtlasError, TrainingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.metrics import dice, log_density_correlation
from scripts.metrics.misfit import MISFIT_WINDOW, local_misfit
from scripts.publishing.quality_page import SubjectQuality
from scripts.publishing.statistics import DensityStatistics
from scripts.publishing.subject_maps import WARPED_FOLDER, SubjectMaps
from scripts.publishing.viewer_volumes import ViewedSubject, ViewerGrid, WorstSubjects
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
from scripts.runtime.write_behind import WriteBehind
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.label_fusion import LabelSums, label_shares

__all__ = [
    "NEGLIGIBLE_SHARE",
    "Emission",
    "Emitted",
    "Templates",
    "Velocities",
    "naming",
]


T = TypeVar("T")

NEGLIGIBLE_SHARE = 0.01  # a template ignores subjects of which it explains less
_SHOWN = 3  # subjects that the quality page draws


class Velocities(Protocol):
    """Source of each subject's final velocity for the publisher."""

    assignment: torch.Tensor

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """``(1, d, *reduced)`` of subject ``index`` to a template."""
        ...


class Progress(Protocol):
    """A bar."""

    def update(self) -> Any:
        """One more is done."""
        ...

    def close(self) -> None:
        """All are done."""
        ...


@dataclass(frozen=True)
class Templates:
    """The published templates, the same for every subject.

    Attributes:
        point: the chosen covariates, coded ``(1, p)``; None for the cohort's mean.
        towards: velocity of the templates there, ``(1, d, *reduced)``; None for the mean's.
        density: the published mean, ``(K, C, *crop)``.
    """

    point: torch.Tensor | None
    towards: torch.Tensor | None
    density: torch.Tensor


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

    Over several processes each one takes every n-th subject.

    Args:
        network: with its final template.
        dataset: LINEAR densities in the cohort's box, in the cohort's order (``image``).
        cohort: subjects, grid, box.
        settings: what is emitted and checked.
        velocities: each subject's final velocity.
        templates: that are published.
        device: where fields are made.
        bar: makes a progress bar for so many subjects.
        loss: the training's, told of each subject on the quality page.
    """

    def __init__(
        self,
        network: AtlasNetwork,
        dataset: Sequence[dict[str, Any]],
        cohort: Cohort,
        settings: LearnedAtlasConfig,
        velocities: Velocities,
        templates: Templates,
        device: torch.device,
        bar: Any = None,
        loss: AtlasLoss | None = None,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.cohort = cohort
        self.settings = settings
        self.velocities = velocities
        self.templates = templates
        self.device = device
        self.bar = bar
        self.loss = loss
        self.view = ViewerGrid.of(cohort.grid, cohort.crop, network.log_offset)
        self.maps = SubjectMaps(cohort.grid, settings.save_warped, settings.save_jacobians)

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
                    (WARPED_FOLDER, self.maps.any),
                ):
                    if wanted:
                        (staging / name).mkdir()
        barrier()
        with closing(bar) if bar is not None else nullcontext(), WriteBehind() as behind:
            # In step, so that a field which fails anywhere ends the run at once.
            for first in range(0, subjects, world_size()):
                error: TractAtlasError | None = None
                try:
                    with naming(folder):
                        if first + rank() < subjects:
                            index = first + rank()
                            self._emit_subject(index, staging, emitted, moves, behind)
                        if first + world_size() >= subjects:
                            behind.finish()
                except TractAtlasError as failure:
                    error = failure
                stop_together(error)
                if bar is not None:
                    bar.update()
        add_up(*moves)
        own = emitted
        for part in collected_by_first(own):
            if part is not own:
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

    def _emit_subject(
        self,
        index: int,
        staging: Path,
        emitted: Emitted,
        moves: tuple[torch.Tensor, torch.Tensor],
        behind: WriteBehind,
    ) -> None:
        """Gather one subject and have its fields written."""
        grid, crop = self.cohort.grid, self.cohort.crop
        name = self.cohort.subjects[index].name
        inside = torch.as_tensor(self.dataset[index]["image"]).to(self.device)[None]
        density = inside.new_zeros((1, self.network.channels, *grid.shape))
        crop.crop(density)[...] = inside
        weights = self.velocities.assignment[index]
        home = int(weights.argmax())
        for k, weight in enumerate(weights.tolist()):
            if weight < NEGLIGIBLE_SHARE and k != home:
                continue
            velocity = self.velocities.velocity(index, k)
            found = fields_of(self.network, velocity, crop, grid.shape, self.templates.towards)
            moved = found.subject_in_template(density)
            carried = moved[0].cpu().numpy()
            emitted.statistics[k].add(carried, weight)
            if k != home:
                continue
            emitted.jacobians[name] = self._verified(name, found)
            if self.settings.save_fields:
                fields = (found.to_template, found.to_subject)
                for file, field in zip(field_names(name), fields, strict=True):
                    displacement = field[0].cpu().numpy()
                    path = staging / "fields" / file
                    behind.write(self._write_field, path, displacement, emitted.hashes)
            labels = None if self.cohort.labels is None else self.cohort.labels.read(name)
            if labels is not None:
                way = found.to_template[0].double().cpu().numpy()
                emitted.labels[k].add(label_shares(labels, way))
            maps = self.maps.of(found, carried, labels)
            if maps:
                emitted.maps[name] = list(maps)
                own = f"template-{k + 1}/" if self.network.n_templates > 1 else ""
                reference = f"bids::{own}atlas_mean.nii.gz"
                behind.write(self.maps.write, staging / WARPED_FOLDER, name, maps, reference)
            length = float(found.to_template[0].square().sum(0).mean())
            moves[0].add_(found.to_template[0])
            moves[1].add_(length)
            emitted.subjects.append(
                {
                    "subject": name,
                    "correlation": log_density_correlation(
                        crop.crop(carried),
                        self.templates.density[k].cpu().numpy(),
                        self.network.log_offset,
                    ),
                    **self._fit(k, inside, velocity, found),
                    "smallest_jacobian": found.smallest_jacobian,
                    "displacement": length**0.5,
                }
            )
            self._view(index, k, inside[0], carried, found, emitted)
            if index < _SHOWN:
                emitted.pictures[name] = inside[0].cpu().numpy()
                emitted.grids[name] = crop.crop(found.to_template[0]).cpu().numpy()

    def _view(
        self,
        index: int,
        k: int,
        inside: torch.Tensor,
        carried: np.ndarray,
        found: Registration,
        emitted: Emitted,
    ) -> None:
        """Keep the volumes of the subject last emitted if it is among the worst so far."""
        measured = emitted.subjects[-1]
        correlation = measured["correlation"]
        order = (
            measured["smallest_jacobian"] > 0,
            correlation if np.isfinite(correlation) else -1.0,
            index,
        )
        if not emitted.viewed.wants(order):
            return
        name, crop = measured["subject"], self.cohort.crop
        growth = jacobian_determinant(found.to_template[0])
        fitted = crop.crop(carried)
        misfit = local_misfit(
            fitted,
            self.templates.density[k].cpu().numpy(),
            self.network.log_offset,
            MISFIT_WINDOW,
        )
        layers = self.view.of_subject(
            name,
            fitted,
            inside.cpu().numpy(),
            crop.crop(found.to_template[0]).cpu().numpy(),
            crop.crop(growth).cpu().numpy(),
            misfit,
        )
        emitted.viewed.add([ViewedSubject(name, order, layers)])

    def _fit(
        self,
        k: int,
        inside: torch.Tensor,
        velocity: torch.Tensor,
        found: Registration,
    ) -> dict[str, float | None]:
        """A subject's loss, and the overlap of the template in its space with its presence."""
        image = log_density_of(inside, self.network.log_offset)
        warped = self.network.warped_template(
            self.cohort.crop.crop(found.to_subject), k, self.templates.point
        )
        loss = None if self.loss is None else float(self.loss(warped, image, velocity)["loss"])
        level = self.settings.presence_value
        there, own = (
            m[0].cpu().numpy() > level
            for m in (density_of(warped, self.network.log_offset), inside)
        )
        return {"loss": loss, "overlap": float(np.mean([*map(dice, there, own)]))}

    def _verified(self, subject: str, found: Registration) -> dict[str, dict[str, float]]:
        if not found.finite:
            raise TrainingError(
                f"the field of subject {subject} is not finite: nothing is published; lower "
                "learned_atlas#optimizer#lr and start afresh with --learned_atlas#resume false"
            )
        if self.settings.verify_jacobian and found.folds:
            raise FoldingError(
                f"the field of subject {subject} folds (smallest det J "
                f"{found.smallest_jacobian:.4g}, must be > 0): "
                "nothing is published; raise learned_atlas#loss#smoothness_weight and start afresh "
                "with --learned_atlas#resume false, or look at the fields with "
                "--learned_atlas#verify_jacobian false"
            )
        return found.jacobian

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
