"""Measures of an atlas or a registration: pure functions over arrays."""

from scripts.metrics.correlation import log_density_correlation, pairwise_correlation, pearson
from scripts.metrics.guards import centrality, inflation, inverse_consistency
from scripts.metrics.overlap import core_share, dice, pairwise_dice
from scripts.metrics.sharpness import (
    entropy_focus_criterion,
    gradient_magnitude,
    gradient_ratio,
)

__all__ = [
    "centrality",
    "core_share",
    "dice",
    "entropy_focus_criterion",
    "gradient_magnitude",
    "gradient_ratio",
    "inflation",
    "inverse_consistency",
    "log_density_correlation",
    "pairwise_correlation",
    "pairwise_dice",
    "pearson",
]
