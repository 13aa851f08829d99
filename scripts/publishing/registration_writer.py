"""Publishes each subject's registration in a separate folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from scripts.atlas.network import density_of
from scripts.atlas.published_model import published_geometry
from scripts.atlas.registration import Registration, fields_of
from scripts.atlas.subject_masks import SubjectMasks
from scripts.atlas.training_step import bare
from scripts.cohort import NewSubjects
from scripts.errors import CohortError, FoldingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.metrics import dice, log_density_correlation
from scripts.metrics.misfit import MISFIT_WINDOW, local_misfit, poor_regions
from scripts.networks.described import weights_identity
from scripts.publishing.registration_page import Registered, growth_of, registration_page
from scripts.publishing.sidecars import (
    dataset_description,
    describe_registration,
    is_own_dataset,
    write_json,
)
from scripts.publishing.subject_maps import SubjectMaps, map_name, write_group
from scripts.publishing.viewer_volumes import ViewerGrid
from scripts.runtime.ownership import check_earlier_report
from scripts.runtime.storage import check_replaceable, publish_folder, write_whole
from scripts.runtime.write_behind import WriteBehind
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.volumes import write_map

__all__ = ["RegistrationWriter"]

logger = logging.getLogger(__name__)

_MISFIT = {
    "Description": "Local misfit of the atlas in the subject's space: squared difference of "
    "presence in a window over the sum of both squares; 0 where hardly anything is present, or a "
    "voxel doesn't count",
    "Units": "1",
}
_POOR = 0.5  # local misfit above which the fit is poor
_LEAST = 0.1  # of the volume of a window: smaller poor regions are noise
_DESCRIPTION = "dataset_description.json"


class RegistrationWriter:
    """Writes the registration of each subject, completely or not at all.

    ``<folder>/<subject>/`` contains both fields, ``<subject>_space-template_density.nii.gz``,
    ``atlas_in_patient_space/atlas_mean.nii.gz``, ``<subject>_misfit.nii.gz`` (see `local_misfit`),
    ``registration.json`` and ``quality.html``. A warning names regions of poor fit. A subject whose
    field fails its check is left out; the others are finished before the run ends with an error.
    With save_warped or save_jacobians, ``<folder>_group`` contains the 4-D files of all subjects.

    Args:
        network: as published.
        subjects: the subjects of the evaluator.
        settings: save_fields, save_warped, save_jacobians, verify_jacobian and presence_value are
            used.
        loss: of the training, reported before and after.
        folder: destination of the subjects' folders.
        masks: voxels of the subjects that don't count; None: all count.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        subjects: NewSubjects,
        settings: LearnedAtlasConfig,
        loss: AtlasLoss,
        folder: str | Path,
        masks: SubjectMasks | None = None,
    ) -> None:
        self.network = bare(network)
        self.masks = masks
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
        self.labels, self.label_names = subjects.labels, subjects.label_names
        self.maps = SubjectMaps(self.grid, settings.save_warped, settings.save_jacobians)
        self.written: dict[str, tuple[int, list[str]]] = {}
        self.group = self.folder.with_name(f"{self.folder.name}_group")
        if self.maps.any:
            folders.append(self.group)
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
            self._publish_group()
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
        valid = None if self.masks is None else self.masks.valid(name)
        subject = inside[0].cpu().numpy()
        misfit = self._misfit(name, subject, atlas, valid)
        before, start = self._unregistered(item)
        report = self._report(item, image, subject, atlas, found, before, start, valid)
        report["poor_fit"] = self._poor_fit(name, misfit)
        moved = found.subject_in_template(density)[0].cpu().numpy()
        fields = [u[0].cpu().numpy() for u in (found.to_template, found.to_subject)]
        labels = None if self.labels is None else self.labels.read(name)
        viewed = Registered(
            subject,
            self.crop.crop(atlas).copy(),
            before,
            self.crop.crop(fields[1]).copy(),
            self.crop.crop(growth_of(found.to_subject[0])).copy(),
            self.crop.crop(misfit).copy(),
            None if labels is None else self.crop.crop(labels).copy(),
        )
        maps = self.maps.of(found, moved, labels)
        if maps:
            self.written[name] = (int(item["template"]) + 1, list(maps))
        maps.setdefault("density", moved)
        self.behind.write(self._publish, name, fields, maps, atlas, misfit, report, viewed)

    def _publish_group(self) -> None:
        """The 4-D files of all subjects that were registered, in the order of their names."""
        if not self.written:
            return
        names = sorted(self.written)
        with publish_folder(self.group) as staging:
            write_group(
                staging,
                {
                    name: {
                        kind: self.folder / name / map_name(name, kind)
                        for kind in self.written[name][1]
                    }
                    for name in names
                },
                self.grid,
                self.network.description["tracts"],
                None
                if self.network.n_templates == 1
                else {name: self.written[name][0] for name in names},
            )
            about = dataset_description("Subjects registered to a learned atlas, in 4-D files")
            write_json(staging / _DESCRIPTION, about)

    def _publish(
        self,
        name: str,
        fields: list[np.ndarray],
        maps: dict[str, np.ndarray],
        atlas: np.ndarray,
        misfit: np.ndarray,
        report: dict[str, Any],
        viewed: Registered,
    ) -> None:
        """Write one subject's folder, while the next one is registered."""
        with publish_folder(self.folder / name) as staging:
            if self.settings.save_fields:
                for file, field in zip(field_names(name), fields, strict=True):
                    write_field(staging / file, field, self.grid)
            reference = f"bids::{quote(name + '/' + map_name(name, 'density'))}"
            self.maps.write(staging, name, maps, reference)
            (staging / "atlas_in_patient_space").mkdir()
            write_map(staging / "atlas_in_patient_space/atlas_mean.nii.gz", atlas, self.grid)
            write_map(staging / f"{name}_misfit.nii.gz", misfit[None], self.grid)
            write_json(staging / f"{name}_misfit.json", {**_MISFIT, "Window": MISFIT_WINDOW})
            paths = [one.path for one in self.subjects[name].maps]
            describe_registration(staging, name, paths, self.settings.cohort.normalisation)
            (staging / "registration.json").write_text(json.dumps(report, indent=1) + "\n")
            page = registration_page(
                report, viewed, self.view, self.network.description["tracts"], self.label_names
            )
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

    def _misfit(
        self, name: str, subject: np.ndarray, atlas: np.ndarray, valid: torch.Tensor | None
    ) -> np.ndarray:
        """The local misfit on the whole grid."""
        inside = local_misfit(
            subject,
            self.crop.crop(atlas),
            self.network.log_offset,
            MISFIT_WINDOW,
            None if valid is None else valid[0].numpy(),
        )
        return self.crop.paste(inside, self.grid.shape)

    def _poor_fit(self, name: str, misfit: np.ndarray) -> list[dict[str, object]]:
        """Regions of poor fit, and a warning that names them."""
        least = _LEAST * float(np.prod([MISFIT_WINDOW * step for step in self.grid.spacing]))
        regions = poor_regions(misfit, self.grid.affine, _POOR, least)
        if regions:
            places = "; ".join(
                f"{one.volume / 1000:.1f} ml around ({', '.join(f'{x:.0f}' for x in one.centre)}) "
                "mm (RAS)"
                for one in regions[:3]
            )
            more = f" and {len(regions) - 3} more" if len(regions) > 3 else ""
            logger.warning(
                "subject %s: the atlas fits poorly in %s%s, see %s_misfit.nii.gz; if this is a "
                "lesion or a cut field of view, give a mask of it with "
                "--learned_atlas#cohort#mask",
                name,
                places,
                more,
                name,
            )
        return [one.as_dict() for one in regions]

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
        valid: torch.Tensor | None,
    ) -> dict[str, Any]:
        """``registration.json``: how well the atlas fits, and the origin of the fit."""
        k = int(item["template"])
        velocity = item["velocity"][None]
        covariates = item["covariates"][None] if "covariates" in item else None
        here, before = self.crop.crop(atlas), unregistered
        presence, offset = self.settings.presence_value, self.network.log_offset
        own = subject > 0
        if valid is not None:  # the subject is 0 where voxels don't count
            before, here = (np.where(valid.numpy(), one, 0) for one in (before, here))
        return {
            "subject": item["subject"],
            "maps": [
                {"path": str(one.path), "channel": one.channel, "divisor": one.divisor,
                 "sha256": one.sha256}
                for one in self.subjects[item["subject"]].maps
            ],
            **self._covariates(item["subject"]),
            "mask": None if self.masks is None else self.masks.record(item["subject"]),
            "normalisation": self.settings.cohort.normalisation,
            "training_space": self.settings.training_space,
            "weights": self.weights,
            "template": k + 1,
            "n_templates": self.network.n_templates,
            "refinement_iterations": self.settings.refine.new_subject_iterations,
            "loss": {
                "before": self._losses(image, start, k, covariates, valid),
                "after": self._losses(image, velocity, k, covariates, valid),
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
        valid: torch.Tensor | None = None,
    ) -> dict[str, float]:
        """The terms as used by the refinement: smoothness of the part that covariates don't
        explain."""
        network = self.network
        warped = network.warped_template(network.displacement(velocity), k, covariates)
        if covariates is not None:
            velocity = velocity - network.covariate_velocity(covariates)
        where = None if valid is None else valid[None].to(image.device)
        terms = self.loss(warped, image, velocity, valid=where)
        return {name: float(term) for name, term in terms.items()}
