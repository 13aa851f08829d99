"""From a trained network to the published atlas: maps, fields, checks, description."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from scripts.atlas.network import AtlasNetwork, density_of, log_density_of
from scripts.atlas.registration import Registration, fields_of
from scripts.cohort import Cohort, CovariateCoding, Values
from scripts.errors import FoldingError, StorageError, TractAtlasError, TrainingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.metrics import dice, log_density_correlation
from scripts.networks.described import weights_identity
from scripts.publishing.emission import NEGLIGIBLE_SHARE, Emitted, Templates, Velocities
from scripts.publishing.provenance import code_identity, description_hash, versions_here
from scripts.publishing.quality_page import quality_page
from scripts.publishing.sidecars import describe_atlas
from scripts.publishing.statistics import DensityStatistics
from scripts.runtime.processes import (
    StoppedElsewhere,
    add_up,
    barrier,
    collected_by_first,
    from_first,
    is_first,
    rank,
    stop_together,
    world_size,
)
from scripts.runtime.storage import file_hash, publish_folder, write_whole
from scripts.runtime.write_behind import WriteBehind
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.volumes import write_map

__all__ = ["AtlasPublisher"]

logger = logging.getLogger(__name__)


_SHOWN = 3  # subjects that the quality page draws
_PACKAGES = ("torch", "monai", "pytorch-ignite", "nibabel", "numpy", "scipy", "pydantic")


class History(Protocol):
    """The losses of the training, one dictionary per epoch."""

    epochs: list[dict[str, float]]


class State(Protocol):
    """The run that trained the network."""

    def finish(self, network_identity: str) -> None:
        """Mark the atlas of these weights as published."""
        ...


class Progress(Protocol):
    """A progress bar."""

    def update(self) -> Any:
        """Advance by one."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class AtlasPublisher:
    """Emits maps and fields in one pass over the subjects and publishes them together.

    Memory is that of one subject and four accumulators per template, whatever the cohort's size.
    With several processes each one takes every n-th subject, writes its fields and adds its part to
    the statistics; the first one publishes. They must share a file system.

    Args:
        network: with its final template.
        dataset: LINEAR densities in the cohort's box, in the order of the cohort (``image``).
        cohort: subjects, grid, box.
        settings: what to emit and check.
        velocities: each subject's final velocity.
        output_dir: the atlas goes to ``<output_dir>/<output_subdir>``.
        model_file: ``<ckpt_dir>/model.pt``, for the published weights; None: not written.
        history: of the training's losses, for the description.
        state: of the run; marked when its atlas is published.
        device: for computing the fields.
        bar: makes a progress bar for a number of subjects.
        coding: of a conditional template's covariates.
        at: covariates to publish the atlas at; everything then leads to the template at them, and
            goes to ``<output_subdir>_at_<values>``. None: the cohort's mean.
        loss: of the training, for the quality page.
    """

    def __init__(
        self,
        network: AtlasNetwork,
        dataset: Sequence[dict[str, Any]],
        cohort: Cohort,
        settings: LearnedAtlasConfig,
        velocities: Velocities,
        output_dir: str | Path,
        model_file: str | Path | None = None,
        history: History | None = None,
        state: State | None = None,
        device: torch.device | str = "cpu",
        bar: Any = None,
        coding: CovariateCoding | None = None,
        at: Values | None = None,
        loss: AtlasLoss | None = None,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.cohort = cohort
        self.settings = settings
        self.velocities = velocities
        name = settings.output_subdir if at is None else f"{settings.output_subdir}_{_label(at)}"
        self.folder = Path(output_dir) / name
        self.model_file = model_file
        self.history = history
        self.state = state
        self.device = torch.device(device)
        self.bar = bar
        self.coding = coding
        self.at = at
        self.loss = loss

    @torch.no_grad()
    def publish(self) -> Path:
        """Write the atlas.

        Returns:
            Its folder.

        Raises:
            FoldingError: a field folds and verify_jacobian is true; nothing is published then.
            TrainingError: a field isn't finite; nothing is published then.
            StorageError: a file can't be written; the earlier atlas stays.
        """
        self.network.eval()
        try:
            with ExitStack() as stack:
                staging = from_first(lambda: stack.enter_context(publish_folder(self.folder)))
                templates = self._templates()
                emitted = self._emit(staging, templates)
                from_first(lambda: self._finish(staging, emitted, templates, stack))
        except (TractAtlasError, StoppedElsewhere):
            barrier()  # until the first process has removed the staging folder
            raise
        return self.folder

    def _finish(
        self, staging: Path, emitted: Emitted, templates: Templates, stack: ExitStack
    ) -> None:
        """Write everything that is written once. Closing the stack publishes the folder."""
        with _told_of(self.folder):
            shown = self._write_maps(staging, emitted.statistics, templates)
            about = self._description(emitted)
            (staging / "jacobian.json").write_text(_json(emitted.jacobians))
            (staging / "quality.html").write_text(self._page(about, emitted, templates, shown))
            describe_atlas(staging, about)
            others = {
                path.relative_to(staging).as_posix(): path
                for path in staging.rglob("*")
                if path.is_file()
            }
            hashes = {
                name: file_hash(path) for name, path in others.items() if name not in emitted.hashes
            }
            about["files"] = dict(sorted((hashes | emitted.hashes).items()))
            about["description_sha256"] = description_hash(about)
            (staging / "atlas.json").write_text(_json(about))
        stack.close()
        if self.model_file is not None:
            with write_whole(self.model_file) as path:
                torch.save(self.network.state_dict(), path)
        if self.state is not None:
            self.state.finish(weights_identity(self.network))
        logger.info("atlas published in %s", self.folder)

    def _emit(self, staging: Path, templates: Templates) -> Emitted:
        """One pass over the subjects: statistics, fields, Jacobians, displacements.

        Returns:
            In the first process the results of all processes, in the others those of each.
        """
        grid = self.cohort.grid
        shape = (self.network.channels, *grid.shape)
        emitted = Emitted(
            [
                DensityStatistics(shape, self.settings.presence_value)
                for _ in range(self.network.n_templates)
            ]
        )
        # Sum of the fields, and of their mean squared lengths.
        moves = (
            torch.zeros(len(grid.shape), *grid.shape, device=self.device),
            torch.zeros(1, dtype=torch.float64),
        )
        subjects = len(self.cohort.subjects)
        bar: Progress | None = (
            self.bar(-(-subjects // world_size()), "emission") if self.bar else None
        )
        if self.settings.save_fields and is_first():
            with _told_of(self.folder):
                (staging / "fields").mkdir()
        barrier()
        with closing(bar) if bar is not None else nullcontext(), WriteBehind() as behind:
            # In step, so that a failing field in any process ends the run at once.
            for first in range(0, subjects, world_size()):
                error: TractAtlasError | None = None
                try:
                    with _told_of(self.folder):
                        if first + rank() < subjects:
                            index = first + rank()
                            self._emit_subject(index, staging, templates, emitted, moves, behind)
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

    def _templates(self) -> Templates:
        point = None
        if self.at is not None and self.coding is not None:
            point = torch.as_tensor(self.coding.code(self.at))[None].to(self.device)
        return Templates(
            point=point,
            towards=None if point is None else self.network.covariate_velocity(point),
            density=self.network.template_density(point),
        )

    def _fit(
        self,
        k: int,
        inside: torch.Tensor,
        velocity: torch.Tensor,
        found: Registration,
        point: torch.Tensor | None,
    ) -> dict[str, float | None]:
        """A subject's loss, and the overlap of presence with the template in its space."""
        image = log_density_of(inside, self.network.log_offset)
        warped = self.network.warped_template(self.cohort.crop.crop(found.to_subject), k, point)
        loss = None if self.loss is None else float(self.loss(warped, image, velocity)["loss"])
        level = self.settings.presence_value
        there, own = (
            m[0].cpu().numpy() > level
            for m in (density_of(warped, self.network.log_offset), inside)
        )
        return {"loss": loss, "overlap": float(np.mean([*map(dice, there, own)]))}

    def _emit_subject(
        self,
        index: int,
        staging: Path,
        templates: Templates,
        emitted: Emitted,
        moves: tuple[torch.Tensor, torch.Tensor],
        behind: WriteBehind,
    ) -> None:
        """Add one subject and start writing its fields."""
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
            found = fields_of(self.network, velocity, crop, grid.shape, templates.towards)
            moved = found.subject_in_template(density)
            emitted.statistics[k].add(moved[0].cpu().numpy(), weight)
            if k != home:
                continue
            emitted.jacobians[name] = self._verified(name, found)
            if self.settings.save_fields:
                fields = (found.to_template, found.to_subject)
                for file, field in zip(field_names(name), fields, strict=True):
                    displacement = field[0].cpu().numpy()
                    path = staging / "fields" / file
                    behind.write(self._write_field, path, displacement, emitted.hashes)
            length = float(found.to_template[0].square().sum(0).mean())
            moves[0].add_(found.to_template[0])
            moves[1].add_(length)
            emitted.subjects.append(
                {
                    "subject": name,
                    "correlation": log_density_correlation(
                        crop.crop(moved[0]).cpu().numpy(),
                        templates.density[k].cpu().numpy(),
                        self.network.log_offset,
                    ),
                    **self._fit(k, inside, velocity, found, templates.point),
                    "smallest_jacobian": found.smallest_jacobian,
                    "displacement": length**0.5,
                }
            )
            if index < _SHOWN:
                emitted.pictures[name] = inside[0].cpu().numpy()
                emitted.grids[name] = crop.crop(found.to_template[0]).cpu().numpy()

    def _verified(self, subject: str, found: Registration) -> dict[str, dict[str, float]]:
        if not found.finite:
            raise TrainingError(
                f"the field of subject {subject} is not finite: nothing is published; lower "
                "learned_atlas#optimizer#lr and start again with --learned_atlas#resume false"
            )
        if self.settings.verify_jacobian and found.folds:
            raise FoldingError(
                f"the field of subject {subject} folds (smallest det J "
                f"{found.smallest_jacobian:.4g}, must be > 0): "
                "nothing is published; raise learned_atlas#loss#smoothness_weight and start again "
                "with --learned_atlas#resume false, or inspect the fields with "
                "--learned_atlas#verify_jacobian false"
            )
        return found.jacobian

    def _write_field(self, path: Path, displacement: np.ndarray, hashes: dict[str, str]) -> None:
        write_field(path, displacement, self.cohort.grid)
        hashes[f"fields/{path.name}"] = file_hash(path)

    def _write_maps(
        self, staging: Path, statistics: list[DensityStatistics], templates: Templates
    ) -> dict[str, np.ndarray]:
        """Write the five maps; with K > 1 a folder per template. Return them for the quality
        page."""
        shown: dict[str, np.ndarray] = {}
        grid, crop = self.cohort.grid, self.cohort.crop
        for k, gathered in enumerate(statistics):
            folder = staging
            if len(statistics) > 1:
                folder = staging / f"template-{k + 1}"
                folder.mkdir()
            if gathered.subjects == 0:
                logger.warning("template %d explains no subject and is not published", k + 1)
                continue
            template = crop.paste(templates.density[k].cpu().numpy(), grid.shape)
            maps = gathered.maps(template, self.settings.cov_mean_threshold_pct)
            for name in self.settings.emit_baseline_maps:
                write_map(folder / f"atlas_{name}.nii.gz", maps[name], grid)
                title = name if len(statistics) == 1 else f"template {k + 1}: {name}"
                shown[title] = crop.crop(maps[name]).max(axis=0)
        return shown

    def _page(
        self,
        about: dict[str, Any],
        emitted: Emitted,
        templates: Templates,
        shown: dict[str, np.ndarray],
    ) -> str:
        """The quality page."""
        volumes = {
            f"template {k + 1}" if self.network.n_templates > 1 else "template": density
            for k, density in enumerate(templates.density.cpu().numpy())
        }
        volumes["plain average"] = self.cohort.mean_density
        volumes |= emitted.pictures
        pictures = {
            title: np.log1p(density.max(axis=0) / self.network.log_offset)
            for title, density in volumes.items()
        }
        losses = self.history.epochs if self.history is not None else []
        return quality_page(about, pictures, shown, emitted.subjects, emitted.grids, losses)

    def _description(self, emitted: Emitted) -> dict[str, Any]:
        """``atlas.json``: the origin of these maps."""
        assignment = self.velocities.assignment
        fields = [f for subject in emitted.jacobians.values() for f in subject.values()]
        return {
            "name": "tract_density_atlas",
            "kind": "learned",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training_space": self.settings.training_space,
            "normalisation": self.cohort.normalisation,
            "presence_value": self.settings.presence_value,
            "cov_mean_threshold_pct": self.settings.cov_mean_threshold_pct,
            "log_offset": self.network.log_offset,
            "n_subjects": len(self.cohort.subjects),
            "cohort": self.cohort.as_dict(),
            **self._covariates(),
            "mixture": {
                subject.name: [round(float(w), 6) for w in assignment[i]]
                for i, subject in enumerate(self.cohort.subjects)
            }
            if self.network.n_templates > 1
            else None,
            "fields": {
                "convention": "ITK displacement field, LPS, mm",
                "smallest_jacobian": min(min(f["min"], f["corner_min"]) for f in fields),
                "folded": sum(min(f["min"], f["corner_min"]) <= 0 for f in fields),
                **emitted.moves,
            },
            "training": {
                "epochs": len(self.history.epochs),
                "losses": self.history.epochs[-1] if self.history.epochs else None,
            }
            if self.history is not None
            else None,
            "settings": self.settings.as_dict(),
            "overrides": self.network.description.get("overrides", {}),
            "weights": weights_identity(self.network),
            "code": code_identity(),
            "versions": versions_here(*_PACKAGES),
        }

    def _covariates(self) -> dict[str, Any]:
        """The entry about the covariates of a conditional template."""
        if self.coding is None:
            return {}
        return {
            "covariates": {
                "at": None if self.at is None else dict(self.at),
                "coding": self.coding.as_list(),
                "columns": self.coding.columns,
            }
        }


def _label(at: Values) -> str:
    """Chosen values as a suffix of a folder's name."""
    said = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in at.items())
    return "at_" + (re.sub(r"[^\w.+=,@()-]", "-", said)[:120].rstrip(".") or "mean")


def _json(values: Any) -> str:
    return json.dumps(values, indent=1, sort_keys=False) + "\n"


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """Turn a system error about a file into an error about the folder to be published.

    Raises:
        StorageError: instead of the system error.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: can't be published: {error}") from error
