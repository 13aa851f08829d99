"""The weighted sum of the loss terms of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from scripts.losses.local_correlation import LocalCorrelationLoss
from scripts.losses.presence import PresenceLoss
from scripts.losses.smoothness import CentralityLoss, SmoothnessLoss
from scripts.networks.grids import averaged, averaged_where

__all__ = ["AtlasLoss"]


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
        """
        terms: dict[str, torch.Tensor] = {}
        pyramid: list[tuple[torch.Tensor, ...]]
        if valid is None:
            pyramid = [(averaged(warped, s), averaged(image, s)) for s in self.scales]
        else:
            pyramid = [self._valid_level(warped, image, valid, s) for s in self.scales]
        if self.weights["similarity"]:
            levels = [self.similarity(*level) for level in pyramid]
            terms["similarity"] = torch.stack(levels).mean()
        if self.weights["presence"]:
            levels = [self.presence(*level) for level in pyramid]
            terms["presence"] = torch.stack(levels).mean()
        if self.weights["smoothness"]:
            terms["smoothness"] = self.smoothness(velocity)
        if self.weights["centrality"] and mean_velocity is not None:
            terms["centrality"] = self.centrality(velocity, mean_velocity)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}

    @staticmethod
    def _valid_level(
        warped: torch.Tensor, image: torch.Tensor, valid: torch.Tensor, scale: int
    ) -> tuple[torch.Tensor, ...]:
        """Both images averaged over the valid voxels of each block, and their share."""
        return (
            averaged_where(warped, valid, scale)[0],
            *averaged_where(image, valid, scale),
        )
