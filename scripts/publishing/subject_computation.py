"""What the emission computes of one subject: fields, warped densities, measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from scripts.atlas.network import (
    NEGLIGIBLE_SHARE,
    AtlasNetwork,
    density_of,
    log_density_of,
)
from scripts.atlas.registration import Registration, fields_of
from scripts.cohort import Cohort
from scripts.errors import FoldingError, TrainingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.metrics import dice, log_density_correlation
from scripts.publishing.quality_page import SubjectQuality
from scripts.publishing.subject_maps import SubjectMaps
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.label_fusion import LabelShares, label_shares

__all__ = ["ComputedSubject", "SubjectComputation", "Templates", "Velocities"]


class Velocities(Protocol):
    """Source of each subject's final velocity for the publisher."""

    assignment: torch.Tensor

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """``(1, d, *reduced)`` of subject ``index`` to a template."""
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


@dataclass(frozen=True)
class ComputedSubject:
    """One subject, computed.

    Attributes:
        assigned: index of the template that explains it best.
        inside: its linear density in the box, ``(C, *crop)``.
        densities: of each template that explains some of it: its index, the share, and the
            subject's density in that template's space, ``(C, *grid)``.
        registration: to the template ``assigned``.
        labels: shares of its labels in template space; None: it has none.
        maps: that are written, by kind.
        mean_square: mean squared length of its displacements, voxels.
        quality: for the quality page.
    """

    assigned: int
    inside: torch.Tensor
    densities: list[tuple[int, float, np.ndarray]]
    registration: Registration
    labels: LabelShares | None
    maps: dict[str, np.ndarray]
    mean_square: float
    quality: SubjectQuality

    @property
    def density(self) -> np.ndarray:
        """Density in the space of the template ``assigned``, ``(C, *grid)``."""
        return next(density for k, _, density in self.densities if k == self.assigned)


class SubjectComputation:
    """Computes subjects, several at once if called in several threads: nothing is changed.

    Args:
        network: with its final template.
        dataset: LINEAR densities in the cohort's box, in the cohort's order (``image``).
        cohort: subjects, grid, box.
        settings: what is emitted and checked.
        velocities: each subject's final velocity.
        templates: that are published.
        device: where fields are made.
        loss: the training's, reported for each subject on the quality page.
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
        loss: AtlasLoss | None = None,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.cohort = cohort
        self.settings = settings
        self.velocities = velocities
        self.templates = templates
        self.device = device
        self.loss = loss
        self.maps = SubjectMaps(cohort.grid, settings.save_warped, settings.save_jacobians)

    @torch.no_grad()
    def __call__(self, index: int) -> ComputedSubject:
        """Compute the subject of this index.

        Raises:
            TrainingError: its field isn't finite.
            FoldingError: its field folds, and that is checked.
        """
        grid, crop = self.cohort.grid, self.cohort.crop
        name = self.cohort.subjects[index].name
        inside = torch.as_tensor(self.dataset[index]["image"]).to(self.device)[None]
        density = inside.new_zeros((1, self.network.channels, *grid.shape))
        crop.crop(density)[...] = inside
        weights = self.velocities.assignment[index]
        assigned = int(weights.argmax())
        densities: list[tuple[int, float, np.ndarray]] = []
        for k, weight in enumerate(weights.tolist()):
            if weight < NEGLIGIBLE_SHARE and k != assigned:
                continue
            velocity = self.velocities.velocity(index, k)
            registration = fields_of(
                self.network, velocity, crop, grid.shape, self.templates.towards
            )
            in_template = registration.subject_in_template(density)[0].cpu().numpy()
            densities.append((k, weight, in_template))
            if k == assigned:
                result = self._at_assigned(
                    name, inside, velocity, registration, in_template, assigned
                )
        return ComputedSubject(assigned, inside[0], densities, *result)

    def _at_assigned(
        self,
        name: str,
        inside: torch.Tensor,
        velocity: torch.Tensor,
        registration: Registration,
        in_template: np.ndarray,
        assigned: int,
    ) -> tuple[Registration, LabelShares | None, dict[str, np.ndarray], float, SubjectQuality]:
        """What is computed of the template that explains a subject best."""
        self._verify(name, registration)
        to_template = registration.to_template[0]
        labels = None if self.cohort.labels is None else self.cohort.labels.read(name)
        shares = None
        if labels is not None:
            shares = label_shares(labels, to_template.double().cpu().numpy())
        mean_square = float(to_template.square().sum(0).mean())
        quality: SubjectQuality = {
            "subject": name,
            "correlation": log_density_correlation(
                self.cohort.crop.crop(in_template),
                self.templates.density[assigned].cpu().numpy(),
                self.network.log_offset,
            ),
            **self._fit(assigned, inside, velocity, registration),
            "smallest_jacobian": registration.smallest_jacobian,
            "displacement": mean_square**0.5,
        }
        maps = self.maps.of(registration, in_template, labels)
        return registration, shares, maps, mean_square, quality

    def _fit(
        self,
        k: int,
        inside: torch.Tensor,
        velocity: torch.Tensor,
        registration: Registration,
    ) -> dict[str, float | None]:
        """A subject's loss, and the overlap of the template in its space with its presence."""
        image = log_density_of(inside, self.network.log_offset)
        warped = self.network.warped_template(
            self.cohort.crop.crop(registration.to_subject), k, self.templates.point
        )
        loss = None if self.loss is None else float(self.loss(warped, image, velocity)["loss"])
        level = self.settings.presence_value
        in_subject, observed = (
            m[0].cpu().numpy() > level
            for m in (density_of(warped, self.network.log_offset), inside)
        )
        return {"loss": loss, "overlap": float(np.mean([*map(dice, in_subject, observed)]))}

    def _verify(self, subject: str, registration: Registration) -> None:
        if not registration.finite:
            raise TrainingError(
                f"the field of subject {subject} is not finite: nothing is published; lower "
                "learned_atlas#optimizer#lr and restart with --learned_atlas#resume false"
            )
        if self.settings.verify_jacobian and registration.folds:
            raise FoldingError(
                f"the field of subject {subject} folds (smallest det J "
                f"{registration.smallest_jacobian:.4g}, must be > 0): "
                "nothing is published; raise learned_atlas#loss#smoothness_weight and start again "
                "with --learned_atlas#resume false, or look at the fields with "
                "--learned_atlas#verify_jacobian false"
            )
