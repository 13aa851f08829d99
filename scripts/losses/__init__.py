"""The loss terms, one per file, and their weighted sum."""

from scripts.losses.atlas_loss import AtlasLoss
from scripts.losses.local_correlation import LocalCorrelationLoss, local_correlation
from scripts.losses.presence import PresenceLoss, soft_presence
from scripts.losses.smoothness import CentralityLoss, SmoothnessLoss

__all__ = [
    "AtlasLoss",
    "CentralityLoss",
    "LocalCorrelationLoss",
    "PresenceLoss",
    "SmoothnessLoss",
    "local_correlation",
    "soft_presence",
]
