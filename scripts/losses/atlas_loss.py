"""The weighted sum of the loss terms of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scripts.losses.local_correlation import LocalCorrelationLoss
from scripts.losses.presence import PresenceLoss
from scripts.losses.smoothness import CentralityLoss, SmoothnessLoss
from scripts.networks.grids import averaged, averaged_where

__all__ = ["AtlasLoss", "LossTarget"]


@dataclass(frozen=True, eq=False)
class LossTarget:
    """A subject prepared for several calls of `AtlasLoss`.

    Attributes:
        levels: by scale: the image, then the valid share of each voxel if there is a mask.
        similarity: by scale, arguments of the similarity.
        presence: by scale, arguments of the presence term.
    """

    levels: list[tuple[torch.Tensor, ...]]
    similarity: list[dict[str, Any]]
    presence: list[dict[str, Any]]


class AtlasLoss(nn.Module):
    """similarity + presence + smoothness + centrality, each with its weight.

    Similarity and presence are means over a pyramid of averaged images. Thin bundles that are apart
    don't overlap in a window of 7 voxels, but they do at a quarter of the resolution: coarse levels
    can register them, the fine level aligns them. Terms of weight 0 are not computed.

    Args:
        spacing: voxel sizes in mm, for the smoothness.
        field_resolution: factor by which the velocity's grid is reduced.
        similarity_weight: of `LocalCorrelationLoss`.
        presence_weight: of `PresenceLoss`.
        smoothness_weight: of `SmoothnessLoss` of the velocity.
        centrality_weight: of `CentralityLoss`.
        window: of the local correlation, in voxels of each level.
        scales: the levels, as factors of averaging.
        similarity: replaces the `LocalCorrelationLoss` of ``window``.
        presence: replaces the `PresenceLoss`.
        smoothness: replaces the `SmoothnessLoss` of ``spacing`` and ``field_resolution``.
        centrality: replaces the `CentralityLoss`.

    Raises:
        ValueError: neither ``spacing`` nor ``smoothness`` is given.
    """

    def __init__(
        self,
        spacing: Sequence[float] | None = None,
        field_resolution: int = 1,
        similarity_weight: float = 1.0,
        presence_weight: float = 0.5,
        smoothness_weight: float = 0.5,
        centrality_weight: float = 0.0,
        window: int = 7,
        scales: Sequence[int] = (1, 2, 4),
        similarity: nn.Module | None = None,
        presence: nn.Module | None = None,
        smoothness: nn.Module | None = None,
        centrality: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if smoothness is None:
            if spacing is None:
                raise ValueError("the loss needs spacing, or a smoothness term")
            smoothness = SmoothnessLoss(spacing, field_resolution)
        self.weights = {
            "similarity": similarity_weight,
            "presence": presence_weight,
            "smoothness": smoothness_weight,
            "centrality": centrality_weight,
        }
        self.scales = tuple(scales)
        self.similarity = similarity or LocalCorrelationLoss(window)
        self.presence = presence or PresenceLoss()
        self.smoothness = smoothness
        self.centrality = centrality or CentralityLoss()

    @property
    def arguments(self) -> dict[str, Any]:
        """The parts of the loss, JSON-able; for a term from elsewhere only its class."""
        ours = {
            "similarity": LocalCorrelationLoss,
            "presence": PresenceLoss,
            "smoothness": SmoothnessLoss,
            "centrality": CentralityLoss,
        }
        terms: dict[str, Any] = {}
        for name, kind in ours.items():
            term = getattr(self, name)
            if type(term) is kind:
                terms[name] = dict(getattr(term, "arguments", {}))
            else:
                terms[name] = {"_target_": f"{type(term).__module__}.{type(term).__qualname__}"}
        weights = {f"{name}_weight": weight for name, weight in self.weights.items()}
        return {**weights, "scales": list(self.scales), **terms}

    def forward(
        self,
        warped: torch.Tensor,
        image: torch.Tensor,
        velocity: torch.Tensor,
        mean_velocity: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        target: LossTarget | None = None,
    ) -> dict[str, torch.Tensor]:
        """Terms (unweighted) by name, and their weighted sum as ``loss``.

        Voxels that aren't valid are left out exactly: no value there changes the loss or its
        gradient. Similarity and presence from elsewhere must then take a weight as third argument.

        Args:
            warped: the template in the subject's space, log density ``(B, C, *shape)``.
            image: the subject, the same shape.
            velocity: ``(B, d, *reduced)``.
            mean_velocity: ``(d, *reduced)``, the running mean; None: no centrality.
            valid: ``(B, 1, *shape)`` bool; None: all voxels count.
            target: the `target` of ``image`` and ``valid``, which several calls share; None:
                computed.
        """
        terms: dict[str, torch.Tensor] = {}
        fixed = self._levels(image, valid) if target is None else target.levels
        if valid is None:
            moving = [averaged(warped, s) for s in self.scales]
        else:
            moving = [averaged_where(warped, valid, s)[0] for s in self.scales]
        if self.weights["similarity"]:
            known = [{}] * len(fixed) if target is None else target.similarity
            terms["similarity"] = _mean_of_levels(self.similarity, moving, fixed, known)
        if self.weights["presence"]:
            known = [{}] * len(fixed) if target is None else target.presence
            terms["presence"] = _mean_of_levels(self.presence, moving, fixed, known)
        if self.weights["smoothness"]:
            terms["smoothness"] = self.smoothness(velocity)
        if self.weights["centrality"] and mean_velocity is not None:
            terms["centrality"] = self.centrality(velocity, mean_velocity)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}

    @torch.no_grad()
    def target(self, image: torch.Tensor, valid: torch.Tensor | None = None) -> LossTarget:
        """What the loss computes of a subject alone, which several calls can share.

        It takes a few volumes of memory. Terms from elsewhere share the averaged images only.
        """
        levels = self._levels(image, valid)
        ours: dict[str, list[dict[str, Any]]] = {
            name: [{"known": term.prepared(*level)} for level in levels]
            if type(term) is kind and self.weights[name]
            else [{}] * len(levels)
            for name, term, kind in (
                ("similarity", self.similarity, LocalCorrelationLoss),
                ("presence", self.presence, PresenceLoss),
            )
        }
        return LossTarget(levels, **ours)

    def _levels(
        self, image: torch.Tensor, valid: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, ...]]:
        """The image at each scale; with a mask its mean over valid voxels, and their share."""
        if valid is None:
            return [(averaged(image, scale),) for scale in self.scales]
        return [averaged_where(image, valid, scale) for scale in self.scales]


def _mean_of_levels(
    term: nn.Module,
    moving: Sequence[torch.Tensor],
    fixed: Sequence[tuple[torch.Tensor, ...]],
    known: Sequence[dict[str, Any]],
) -> torch.Tensor:
    levels = [
        term(image, *level, **arguments)
        for image, level, arguments in zip(moving, fixed, known, strict=True)
    ]
    return torch.stack(levels).mean()
