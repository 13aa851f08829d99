"""Publishes each subject's registration in a separate folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from scripts.atlas.network import density_of
from scripts.atlas.published_model import published_geometry
from scripts.atlas.registration import Registration, fields_of
from scripts.atlas.training_step import bare
from scripts.cohort import NewSubjects
from scripts.errors import CohortError, FoldingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.metrics import dice, log_density_correlation
from scripts.networks.described import weights_identity
from scripts.publishing.registration_page import Registered, growth_of, registration_page
from scripts.publishing.sidecars import (
    dataset_description,
    describe_registration,
    is_own_dataset,
    write_json,
)
from scripts.publishing.viewer_volumes import ViewerGrid
from scripts.runtime.ownership import check_earlier_report
from scripts.runtime.storage import check_replaceable, publish_folder, write_whole
from scripts.runtime.write_behind import WriteBehind
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.volumes import write_map

__all__ = ["RegistrationWriter"]

logger = logging.getLogger(__name__)

_DESCRIPTION = "dataset_description.json"


class RegistrationWriter:
    """Writes the registration of each subject, completely or not at all.

    ``<folder>/<subject>/`` contains both fields, ``<subject>_space-template_density.nii.gz``,
    ``atlas_in_patient_space/atlas_mean.nii.gz``, ``registration.json`` and ``quality.html``. A
    subject whose field fails its check is left out; the others are finished before the run ends
    with an error.

    Args:
        network: as published.
        subjects: the subjects of the evaluator.
        settings: save_fields, verify_jacobian and presence_value are used.
        loss: of the training, reported before and after.
        folder: destination of the subjects' folders.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        subjects: NewSubjects,
        settings: LearnedAtlasConfig,
        loss: AtlasLoss,
        folder: str | Path,
    ) -> None:
        self.network = bare(network)
        self.subjects = {subject.name: subject for subject in subjects.subjects}
        self.rejected = subjects.rejected
        self.settings = settings
        self.loss = loss
        self.folder = Path(folder)
        self.grid, self.crop = published_geometry(self.network)
        self.view = ViewerGrid.of(self.grid, self.crop, self.network.log_offset)
        self.weights = weights_identity(self.network)
        self.failed: list[str] = []
        folders = [self.folder / name for name in self.subjects]
        check_replaceable(*folders, inputs=subjects.files())
        check_earlier_report(self.folder / _DESCRIPTION, is_own_dataset)
        self.behind = WriteBehind()

    def attach(self, engine: Engine) -> None:
        """Write after each iteration, and report failures at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def finish(self, engine: Engine) -> None:
        """Wait for the last files, then report.

        Raises:
            StorageError: a subject's folder can't be written.
            FoldingError: a field folds, or isn't finite; the message names every such subject.
            CohortError: a subject was left out because its maps can't be used.
        """
        self.behind.finish()
        done = len(self.subjects) - len(self.failed)
        if done:
            with write_whole(self.folder / _DESCRIPTION) as path:
                write_json(path, dataset_description("Subjects registered to a learned atlas"))
        logger.info("%d of %d subjects registered, in %s", done, len(self.subjects), self.folder)
        if self.failed:
            raise FoldingError(
                f"nothing is written for {len(self.failed)} of {len(self.subjects)} subjects: "
                f"{'; '.join(self.failed)}; refine the fields with "
                "--learned_atlas#refine#new_subject_iterations 20, or inspect them with "
                "--learned_atlas#verify_jacobian false"
            )
        if self.rejected:
            reasons = [f"{one.subject} ({one.path}: {one.reason})" for one in self.rejected]
            raise CohortError(
                f"{len(self.rejected)} subjects can't be used and were left out, the others are "
                f"registered: {'; '.join(reasons)}; to avoid this error, exclude them with "
                "--learned_atlas#cohort#exclude"
            )

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Write the subjects of the last iteration."""
        subjects: Any = engine.state.output  # decollated: one dictionary per subject
        for item in subjects:
            self._write(item)

    def _write(self, item: dict[str, Any]) -> None:
        """Publish one subject's folder, unless its field fails."""
        name = item["subject"]
        found = fields_of(self.network, item["velocity"][None], self.crop, self.grid.shape)
        failure = self._failure(found)
        if failure is not None:
            logger.warning("subject %s: %s; nothing is written", name, failure)
            self.failed.append(f"{name} ({failure})")
            return
        image = convert_to_tensor(item["image"], track_meta=False)[None]
        inside = density_of(image, self.network.log_offset)
        density = inside.new_zeros((1, self.network.channels, *self.grid.shape))
        self.crop.crop(density)[...] = inside
        atlas = convert_to_tensor(item["density"], track_meta=False).cpu().numpy()
        subject = inside[0].cpu().numpy()
        before, start = self._unregistered(item)
        report = self._report(item, image, subject, atlas, found, before, start)
        moved = found.subject_in_template(density)[0].cpu().numpy()
        fields = [u[0].cpu().numpy() for u in (found.to_template, found.to_subject)]
        viewed = Registered(
            subject,
            self.crop.crop(atlas).copy(),
            before,
            self.crop.crop(fields[1]).copy(),
            self.crop.crop(growth_of(found.to_subject[0])).copy(),
        )
        self.behind.write(self._publish, name, fields, moved, atlas, report, viewed)

    def _publish(
        self,
        name: str,
        fields: list[np.ndarray],
        moved: np.ndarray,
        atlas: np.ndarray,
        report: dict[str, Any],
        viewed: Registered,
    ) -> None:
        """Write one subject's folder, while the next one is registered."""
        with publish_folder(self.folder / name) as staging:
            if self.settings.save_fields:
                for file, field in zip(field_names(name), fields, strict=True):
                    write_field(staging / file, field, self.grid)
            write_map(staging / f"{name}_space-template_density.nii.gz", moved, self.grid)
            (staging / "atlas_in_patient_space").mkdir()
            write_map(staging / "atlas_in_patient_space/atlas_mean.nii.gz", atlas, self.grid)
            paths = [one.path for one in self.subjects[name].maps]
            describe_registration(staging, name, paths, self.settings.cohort.normalisation)
            (staging / "registration.json").write_text(json.dumps(report, indent=1) + "\n")
            page = registration_page(report, viewed, self.view, self.network.description["tracts"])
            (staging / "quality.html").write_text(page, encoding="utf-8")
        correlation = report["log_density_correlation"]
        logger.info(
            "subject %s: correlation of log densities %.3f before, %.3f after; "
            "smallest det J %.3g; %.1f s",
            name,
            correlation["before"],
            correlation["after"],
            min(s["corner_min"] for s in report["jacobian"].values()),
            report["seconds"],
        )

    def _failure(self, found: Registration) -> str | None:
        if not found.finite:
            return "its field is not finite"
        if self.settings.verify_jacobian and found.folds:
            return f"its field folds, smallest det J {found.smallest_jacobian:.4g}, must be > 0"
        return None

    def _report(
        self,
        item: dict[str, Any],
        image: torch.Tensor,
        subject: np.ndarray,
        atlas: np.ndarray,
        found: Registration,
        unregistered: np.ndarray,
        start: torch.Tensor,
    ) -> dict[str, Any]:
        """``registration.json``: how well the atlas fits, and the origin of the fit."""
        k = int(item["template"])
        velocity = item["velocity"][None]
        covariates = item["covariates"][None] if "covariates" in item else None
        here, before = self.crop.crop(atlas), unregistered
        presence, offset = self.settings.presence_value, self.network.log_offset
        own = subject > 0
        return {
            "subject": item["subject"],
            "maps": [
                {"path": str(one.path), "channel": one.channel, "divisor": one.divisor,
                 "sha256": one.sha256}
                for one in self.subjects[item["subject"]].maps
            ],
            **self._covariates(item["subject"]),
            "normalisation": self.settings.cohort.normalisation,
            "training_space": self.settings.training_space,
            "weights": self.weights,
            "template": k + 1,
            "n_templates": self.network.n_templates,
            "refinement_iterations": self.settings.refine.new_subject_iterations,
            "loss": {
                "before": self._losses(image, start, k, covariates),
                "after": self._losses(image, velocity, k, covariates),
            },
            "log_density_correlation": {
                "support": "density of the subject > 0",
                "before": log_density_correlation(before, subject, offset, own),
                "after": log_density_correlation(here, subject, offset, own),
            },
            "presence_dice": {
                "presence_value": presence,
                "before": dice(before > presence, subject > presence),
                "after": dice(here > presence, subject > presence),
            },
            "displacement_rms_voxels": float(found.to_subject.square().sum(1).mean().sqrt()),
            "jacobian": found.jacobian,
            "seconds": round(float(item["seconds"]), 3),
        }  # fmt: skip

    def _unregistered(self, item: dict[str, Any]) -> tuple[np.ndarray, torch.Tensor]:
        """The atlas before registration, ``(C, *crop)``, and the velocity that leads there."""
        if "covariates" in item:
            point = item["covariates"][None]
            density = self.network.template_density(point)[0]
            return density.cpu().numpy(), self.network.covariate_velocity(point)
        density = self.network.template_density()[int(item["template"])]
        return density.cpu().numpy(), torch.zeros_like(item["velocity"][None])

    def _covariates(self, subject: str) -> dict[str, Any]:
        values = dict(self.subjects[subject].covariates)
        coded = self.network.covariates > 0
        return {"covariates": values} if coded else {}

    def _losses(
        self,
        image: torch.Tensor,
        velocity: torch.Tensor,
        k: int,
        covariates: torch.Tensor | None = None,
    ) -> dict[str, float]:
        """The terms as used by the refinement: smoothness of the part that covariates don't
        explain."""
        network = self.network
        warped = network.warped_template(network.displacement(velocity), k, covariates)
        if covariates is not None:
            velocity = velocity - network.covariate_velocity(covariates)
        return {name: float(term) for name, term in self.loss(warped, image, velocity).items()}
