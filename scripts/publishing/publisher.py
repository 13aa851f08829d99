"""From a trained network to the published atlas: maps, fields, checks, description."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from scripts.atlas.network import AtlasNetwork
from scripts.cohort import Cohort, CovariateCoding, Values
from scripts.errors import TractAtlasError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.checkpoint import save_checkpoint
from scripts.networks.described import weights_identity
from scripts.publishing.atlas_labels import write_atlas_labels
from scripts.publishing.description import as_json, description, write_description
from scripts.publishing.emission import Emission, Emitted, naming
from scripts.publishing.quality_page import quality_page
from scripts.publishing.statistics import DensityStatistics
from scripts.publishing.subject_computation import SubjectComputation, Templates, Velocities
from scripts.publishing.subject_maps import GROUP_FOLDER, WARPED_FOLDER, map_name, write_group
from scripts.publishing.viewer import Shown, viewer
from scripts.publishing.viewer_volumes import ViewerGrid
from scripts.runtime.processes import StoppedElsewhere, barrier, from_first
from scripts.runtime.storage import check_replaceable, publish_folder
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.volumes import write_map

__all__ = ["AtlasPublisher"]

logger = logging.getLogger(__name__)


_WORDS = {
    "std": "standard deviation",
    "std_error": "standard error",
    "cov": "coefficient of variation",
    "prob_threshold": "share of subjects",
}  # of the maps, in the viewer
_PACKAGES = ("torch", "monai", "pytorch-ignite", "nibabel", "numpy", "scipy", "pydantic")


class History(Protocol):
    """The losses of the training, one dictionary per epoch."""

    epochs: list[dict[str, float]]


class State(Protocol):
    """The run that trained the network."""

    def finish(self, network_identity: str) -> None:
        """Mark the atlas of these weights as published."""
        ...


class AtlasPublisher:
    """Emits maps and fields in one pass over the subjects and publishes them together.

    Memory is that of a few subjects and four accumulators per template, whatever the cohort's
    size.
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
        confirm: called before the folder is published; raises if what was read has changed.

    Raises:
        StorageError: the atlas's folder can't be replaced, see `check_replaceable`.
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
        confirm: Callable[[], None] | None = None,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.cohort = cohort
        self.settings = settings
        self.velocities = velocities
        name = settings.output_subdir if at is None else f"{settings.output_subdir}_{_label(at)}"
        self.folder = Path(output_dir) / name
        needed = [] if model_file is None else [Path(model_file).parent]
        check_replaceable(self.folder, inputs=[*cohort.files(), *needed])
        self.model_file = model_file
        self.history = history
        self.state = state
        self.device = torch.device(device)
        self.bar = bar
        self.coding = coding
        self.at = at
        self.loss = loss
        self.confirm = confirm
        self.view = ViewerGrid.of(cohort.grid, cohort.crop, network.log_offset)

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
                emitted = self._emission(templates).run(staging, self.folder)
                from_first(lambda: self._finish(staging, emitted, templates, stack))
        except (TractAtlasError, StoppedElsewhere):
            barrier()  # until the first process has removed the staging folder
            raise
        return self.folder

    def _finish(
        self, staging: Path, emitted: Emitted, templates: Templates, stack: ExitStack
    ) -> None:
        """Write everything that is written once. Closing the stack publishes the folder."""
        with naming(self.folder):
            shown, images = self._write_maps(staging, emitted.statistics, templates)
            self._write_group(staging, emitted)
            about = self._description(emitted)
            labels, overlays = self._write_labels(staging, emitted)
            about.update(labels)
            (staging / "jacobian.json").write_text(as_json(emitted.jacobians))
            (staging / "quality.html").write_text(
                self._page(about, emitted, templates, shown, images, overlays), encoding="utf-8"
            )
            write_description(staging, about, emitted.hashes)
        if self.confirm is not None:
            self.confirm()
        stack.close()
        if self.model_file is not None:
            save_checkpoint(self.network.state_dict(), self.model_file)
        if self.state is not None:
            self.state.finish(weights_identity(self.network))
        logger.info("atlas published in %s", self.folder)

    def _emission(self, templates: Templates) -> Emission:
        computation = SubjectComputation(
            self.network, self.dataset, self.cohort, self.settings, self.velocities, templates,
            self.device, self.loss,
        )  # fmt: skip
        return Emission(computation, self.bar)

    def _templates(self) -> Templates:
        point = None
        if self.at is not None and self.coding is not None:
            point = torch.as_tensor(self.coding.code(self.at))[None].to(self.device)
        return Templates(
            point=point,
            towards=None if point is None else self.network.covariate_velocity(point),
            density=self.network.template_density(point),
        )

    def _write_maps(
        self, staging: Path, statistics: list[DensityStatistics], templates: Templates
    ) -> tuple[dict[str, np.ndarray], list[Shown]]:
        """Write the five maps; with K > 1 a folder per template. Return them for the quality page,
        as pictures and for the viewer."""
        shown: dict[str, np.ndarray] = {}
        images: list[Shown] = []
        grid, crop = self.cohort.grid, self.cohort.crop
        for k, gathered in enumerate(statistics):
            folder = self._template_folder(staging, k)
            folder.mkdir(exist_ok=True)
            if gathered.subjects == 0:
                logger.warning("template %d explains no subject and is not published", k + 1)
                continue
            template = crop.paste(templates.density[k].cpu().numpy(), grid.shape)
            maps = gathered.maps(template, self.settings.cov_mean_threshold_pct)
            for name in self.settings.emit_baseline_maps:
                write_map(folder / f"atlas_{name}.nii.gz", maps[name], grid)
                title = name if len(statistics) == 1 else f"template {k + 1}: {name}"
                inside = crop.crop(maps[name])
                shown[title] = inside.max(axis=0)
                if name != "mean":  # the template, which is there already
                    kind = "percent" if name == "prob_threshold" else "plain"
                    words = title.replace(name, f"{_WORDS[name]} ({name})")
                    images.append(Shown("Maps", self.view.map(words, inside, kind)))
        return shown, images

    def _template_folder(self, staging: Path, k: int) -> Path:
        """Folder of a template's maps; that of the atlas if there is only one template."""
        return staging if self.network.n_templates == 1 else staging / f"template-{k + 1}"

    def _write_labels(self, staging: Path, emitted: Emitted) -> tuple[dict[str, Any], list[Shown]]:
        """Write the fused labels beside the maps of each template. Return their entry in atlas.json
        and the layers of the viewer."""
        overlays: list[Shown] = []
        labels: dict[int, dict[str, Any]] = {}
        for k, sums in enumerate(emitted.labels):
            if sums.subjects == 0:
                continue
            folder = self._template_folder(staging, k)
            majority, names = sums.majority(), self.cohort.label_names
            written = write_atlas_labels(folder, sums, majority, self.cohort.grid, names)
            title = "labels" if len(emitted.labels) == 1 else f"template {k + 1}: labels"
            inside = self.cohort.crop.crop(majority)
            overlays.append(Shown("Labels", self.view.labels(title, inside, names)))
            labels |= {one["index"]: one for one in written}
        entry = {"labels": [labels[index] for index in sorted(labels)]} if labels else {}
        return entry, overlays

    def _write_group(self, staging: Path, emitted: Emitted) -> None:
        """The 4-D files of the subjects' maps, if there are such maps."""
        if not emitted.maps:
            return
        (staging / GROUP_FOLDER).mkdir()
        assigned = self.velocities.assignment.argmax(1).tolist()
        names = [subject.name for subject in self.cohort.subjects]
        write_group(
            staging / GROUP_FOLDER,
            {
                name: {kind: staging / WARPED_FOLDER / map_name(name, kind) for kind in kinds}
                for name, kinds in emitted.maps.items()
            },
            self.cohort.grid,
            self.cohort.tracts,
            None
            if self.network.n_templates == 1
            else {name: k + 1 for name, k in zip(names, assigned, strict=True)},
        )

    def _page(
        self,
        about: dict[str, Any],
        emitted: Emitted,
        templates: Templates,
        shown: dict[str, np.ndarray],
        images: list[Shown],
        overlays: list[Shown],
    ) -> str:
        """The quality page."""
        volumes = {
            f"template {k + 1}" if self.network.n_templates > 1 else "template": density
            for k, density in enumerate(templates.density.cpu().numpy())
        }
        volumes["plain average"] = self.cohort.mean_density
        atlas = [
            Shown("Atlas", self.view.density(title, density)) for title, density in volumes.items()
        ]
        volumes |= emitted.pictures
        pictures = {
            title: np.log1p(density.max(axis=0) / self.network.log_offset)
            for title, density in volumes.items()
        }
        viewed = viewer(
            self.view, self.cohort.tracts, [*atlas, *images], emitted.viewed.sorted(),
            of=len(emitted.subjects), overlays=overlays,
        )  # fmt: skip
        losses = self.history.epochs if self.history is not None else []
        return quality_page(about, pictures, shown, emitted.subjects, emitted.grids, losses, viewed)

    def _description(self, emitted: Emitted) -> dict[str, Any]:
        """``atlas.json``: the origin of these maps."""
        assignment = self.velocities.assignment
        fields = [f for subject in emitted.jacobians.values() for f in subject.values()]
        specific = {
            "log_offset": self.network.log_offset,
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
            "fit": {
                name: float(np.mean([one[name] for one in emitted.subjects]))
                for name in ("correlation", "overlap")
            },
            "training": {
                "epochs": len(self.history.epochs),
                "losses": self.history.epochs[-1] if self.history.epochs else None,
            }
            if self.history is not None
            else None,
            "overrides": self.network.description.get("overrides", {}),
            "weights": weights_identity(self.network),
        }
        return description("learned", self.cohort, self.settings, specific, _PACKAGES)

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
    label = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in at.items())
    return "at_" + (re.sub(r"[^\w.+=,@()-]", "-", label)[:120].rstrip(".") or "mean")
