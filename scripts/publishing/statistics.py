"""Voxelwise statistics over a cohort in one pass; processes can be merged."""

from __future__ import annotations

import numpy as np

__all__ = ["DensityStatistics"]


class DensityStatistics:
    """Count, mean, sum of squared deviations, and number of subjects present, per voxel.

    Uses Welford's update and Chan's merge in float64. They are stable where the naive sum of
    squares isn't, and a cohort split over any number of processes gives the same maps (up to
    rounding, about 1e-15 of the value). Memory is four volumes whatever the number of subjects.

    Weights, for mixtures: a subject may count as a fraction.

    Args:
        shape: of one density volume.
        presence_value: a density above this (strictly) counts as present.
    """

    def __init__(self, shape: tuple[int, ...], presence_value: float) -> None:
        self.presence_value = presence_value
        self.subjects = 0.0
        self.sample_mean = np.zeros(shape)
        self.squares = np.zeros(shape)
        self.present = np.zeros(shape)

    def add(self, density: np.ndarray, weight: float = 1.0) -> None:
        """Add one subject's density in template space."""
        if weight <= 0:
            return
        self.subjects += weight
        change = density.astype(np.float64) - self.sample_mean
        self.sample_mean += change * (weight / self.subjects)
        change *= density - self.sample_mean
        self.squares += weight * change
        self.present += weight * (density > self.presence_value)

    def merge(self, other: DensityStatistics) -> None:
        """Add the statistics of another process over other subjects."""
        if other.subjects == 0:
            return
        total = self.subjects + other.subjects
        change = other.sample_mean - self.sample_mean
        self.squares += other.squares + change**2 * (self.subjects * other.subjects / total)
        self.sample_mean += change * (other.subjects / total)
        self.present += other.present
        self.subjects = total

    def maps(
        self, template: np.ndarray | None = None, cov_mean_threshold_pct: float = 0.01
    ) -> dict[str, np.ndarray]:
        """The five maps, float32.

        Args:
            template: the learned template, published as ``mean``; None: the sample mean.
            cov_mean_threshold_pct: cov is 0 where the sample mean is at most this share of its
                maximum.

        Returns:
            ``mean``; ``std`` (population, about the sample mean); ``std_error`` = std / sqrt(n);
            ``cov`` = std / sample mean; ``prob_threshold`` = per cent of subjects with a density
            above presence_value.
        """
        if self.subjects == 0:
            raise ValueError("no subject was added")
        mean = self.sample_mean
        std = np.sqrt(np.maximum(self.squares, 0) / self.subjects)
        firm = mean > cov_mean_threshold_pct * mean.max(initial=0)
        maps = {
            "mean": mean if template is None else template,
            "std": std,
            "std_error": std / np.sqrt(self.subjects),
            "cov": np.divide(std, mean, out=np.zeros_like(std), where=firm),
            "prob_threshold": 100 * self.present / self.subjects,
        }
        return {name: values.astype(np.float32) for name, values in maps.items()}
