"""Evaluates an atlas on subjects that it wasn't trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from scripts.atlas.building import TRAINED_ON_DIGITS
from scripts.atlas.network import AtlasNetwork, density_of
from scripts.atlas.published_components import open_new_subjects
from scripts.atlas.published_model import published_geometry
from scripts.atlas.registration import Registration, fields_of
from scripts.atlas.subject_masks import SubjectMasks
from scripts.atlas.training_step import bare
from scripts.cohort import NewSubjects, read_cohort
from scripts.errors import CohortError, TrainingError
from scripts.evaluation.label_overlap import LabelOverlap
from scripts.evaluation.measures import field_measures, likeness, sharpness
from scripts.evaluation.report import Row, publish_evaluation, table
from scripts.networks.described import weights_identity
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_replaceable
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.evaluate import EvaluateConfig

__all__ = ["EVALUATION_FOLDER", "EvaluationWriter", "open_held_out", "training_average"]

logger = logging.getLogger(__name__)

EVALUATION_FOLDER = "evaluation"


def open_held_out(
    network: AtlasNetwork,
    settings: LearnedAtlasConfig,
    dataset_dir: str | Path,
    asked: EvaluateConfig,
    at: str | Mapping[str, Any] | None = None,
    given: LearnedAtlasConfig | None = None,
) -> NewSubjects:
    """Open the subjects to evaluate; refuse those whose maps were used in training.

    Args:
        network: as published.
        settings: of the model and the job.
        dataset_dir: a folder in a cohort's layout.
        asked: gives allow_training_subjects.
        at: covariates of all subjects, see `open_new_subjects`.
        given: settings of the job alone, likewise.

    Raises:
        CohortError: see `read_new_subjects`; or a subject was used in training.
    """
    result = open_new_subjects(network, settings, dataset_dir, at=at, labels=True, asked=given)
    known = set(network.description.get("trained_on", ()))
    if not known:
        logger.warning("the model doesn't record its training maps, so no subject can be excluded")
    repeated = [
        subject.name
        for subject in result.subjects
        if any(one.sha256[:TRAINED_ON_DIGITS] in known for one in subject.maps)
    ]
    if repeated and not asked.allow_training_subjects:
        raise CohortError(
            f"the model was trained on the maps of {len(repeated)} of {len(result.subjects)} "
            f"subjects in dataset folder {dataset_dir}: {', '.join(repeated[:10])}"
            f"{' and more' if len(repeated) > 10 else ''}; leave them out with "
            "--learned_atlas#cohort#exclude, or include them anyway with "
            "--evaluate#allow_training_subjects true"
        )
    return result


def training_average(network: AtlasNetwork, training_dir: str | Path | None) -> np.ndarray | None:
    """The plain average of a model's training cohort, in the box of the model.

    Args:
        network: as published.
        training_dir: dataset of the training; None: no average.

    Returns:
        Density ``(C, *crop.shape)``.

    Raises:
        CohortError: the folder contains another cohort.
    """
    if training_dir is None:
        return None
    # Any number is accepted: the comparison below decides whether the subjects are the right ones.
    settings = LearnedAtlasConfig.load({**network.description["settings"], "min_subjects": 1})
    cohort = read_cohort(training_dir, settings.cohort_request().without_labels())
    if cohort.identity() != network.description["cohort"]:
        raise CohortError(
            f"{training_dir}: is not the cohort that the model was trained on; name its folder "
            "with --training_dir, or leave it out (then the plain average isn't evaluated)"
        )
    return cohort.mean_density


class EvaluationWriter:
    """Measures each subject during the evaluator's run, and publishes all results at the end.

    Args:
        network: as published.
        subjects: the subjects of the evaluator.
        settings: presence_value is used, the others are recorded.
        average: of the training cohort, see `training_average`.
        output_dir: the table goes to its folder ``evaluation``.
        masks: voxels of the subjects that don't count; None: all count.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        subjects: NewSubjects,
        settings: LearnedAtlasConfig,
        average: np.ndarray | None,
        output_dir: str | Path,
        masks: SubjectMasks | None = None,
    ) -> None:
        self.masks = masks
        self.network = bare(network)
        self.subjects = subjects
        self.settings = settings
        self.average = average
        self.folder = Path(output_dir) / EVALUATION_FOLDER
        check_replaceable(self.folder, inputs=subjects.files())
        self.grid, self.crop = published_geometry(self.network)
        self.templates = self.network.template_density().cpu().numpy()
        self.rows: list[Row] = []
        self.slopes: list[float] = []
        self.moved = np.zeros((len(self.templates), len(self.grid.shape), *self.crop.shape))
        self.counts = np.zeros(len(self.templates), dtype=int)
        self.labels: LabelOverlap | None = None
        if subjects.labels is not None and subjects.labels.files:
            self.labels = LabelOverlap(subjects.labels, len(self.templates), self._fields)
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Measure after each iteration, publish at the end."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def _begin(self, engine: Engine) -> None:
        self._bar = progress_bar(len(self.subjects.subjects), "evaluation")

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Measure the subjects of the last iteration."""
        items: Any = engine.state.output  # decollated: one dictionary per subject
        for item in items:
            self.rows.append(self._measured(item))
            self._bar.update()

    def _measured(self, item: dict[str, Any]) -> Row:
        k = int(item["template"])
        offset, presence = self.network.log_offset, self.settings.presence_value
        image = convert_to_tensor(item["image"], track_meta=False)
        subject = density_of(image, offset).double().cpu().numpy()
        propagated = convert_to_tensor(item["pred"], track_meta=False).cpu().numpy()
        # Undeformed, a conditional template is that at the subject's covariates.
        template = self.templates[k]
        if "covariates" in item:
            template = self.network.template_density(item["covariates"][None])[0].cpu().numpy()
        registration = self._fields(item["velocity"][None])
        if not registration.finite:
            raise TrainingError(f"the field of subject {item['subject']} is not finite")
        if self.labels is not None:
            self.labels.add(item["subject"], k, item["velocity"][None], registration)
        self.moved[k] += self.crop.crop(registration.to_template[0]).double().cpu().numpy()
        self.counts[k] += 1
        self.slopes.append(sharpness(subject, offset, self.grid.spacing)[1])
        values: Row = {"subject": item["subject"], "template": k + 1}
        # The subject is 0 in voxels that don't count.
        valid = None if self.masks is None else self.masks.valid(item["subject"])
        for suffix, atlas in (
            ("", propagated), ("_unregistered", template), ("_average", self.average),
        ):  # fmt: skip
            if atlas is not None and valid is not None:
                atlas = np.where(valid, atlas, 0)
            both = (None, None) if atlas is None else likeness(subject, atlas, offset, presence)
            values[f"correlation{suffix}"], values[f"presence_dice{suffix}"] = both
        values |= field_measures(registration, self.crop, subject, template)
        return {**values, "seconds": round(float(item["seconds"]), 3)}

    def _fields(self, velocity: torch.Tensor) -> Registration:
        """Both fields of a velocity on the whole grid."""
        velocity = velocity.to(self.network.template.device)
        return fields_of(self.network, velocity, self.crop, self.grid.shape)

    def _label_rows(self) -> list[Row]:
        """Dice of each subject's labels; their mean goes to the subject's row."""
        if self.labels is None:
            return []
        scores, names = self.labels.finish(), self.subjects.label_names
        for row in self.rows:
            by_label = scores.get(row["subject"])
            row["label_dice"] = float(np.mean(list(by_label.values()))) if by_label else None
        return [
            {"subject": subject, "label": label, "name": names.get(label, label), "dice": value}
            for subject, by_label in scores.items()
            for label, value in by_label.items()
        ]

    def finish(self, engine: Engine) -> None:
        """Publish and print the results.

        Raises:
            StorageError: it can't be written.
        """
        self._bar.close()
        labels = self._label_rows()
        publish_evaluation(
            self.folder,
            self.rows,
            {
                "kind": "held_out",
                "weights": weights_identity(self.network),
                "refinement_iterations": self.settings.refine.new_subject_iterations,
                "presence_value": self.settings.presence_value,
                "log_offset": self.network.log_offset,
                "templates": self._templates(),
                "rejected": [
                    {"subject": one.subject, "reason": one.reason} for one in self.subjects.rejected
                ],
                "settings": self.settings.as_dict(),
            },
            labels,
        )
        print(table(self.rows), flush=True)
        logger.info("%d subjects evaluated, in %s", len(self.rows), self.folder)

    def _templates(self) -> list[dict[str, Any]]:
        """Sharpness of each template and of the plain average, and centrality."""
        offset, spacing = self.network.log_offset, self.grid.spacing
        single = float(np.mean(self.slopes))
        plain = None if self.average is None else sharpness(self.average, offset, spacing)
        result: list[dict[str, Any]] = []
        for k, template in enumerate(self.templates):
            focus, slope = sharpness(template, offset, spacing)
            support = (template > 0).any(axis=0)
            mean = (self.moved[k] / max(1, self.counts[k]))[:, support]
            result.append(
                {
                    "template": k + 1,
                    "subjects": int(self.counts[k]),
                    "efc": focus,
                    "efc_average": None if plain is None else plain[0],
                    "gradient_ratio": slope / single if single else None,
                    "gradient_ratio_average": (
                        None if plain is None or not single else plain[1] / single
                    ),
                    "mean_displacement_rms_voxels": (
                        float(np.sqrt((mean**2).sum(axis=0).mean()))
                        if self.counts[k] and mean.size
                        else None
                    ),
                }
            )
        return result
