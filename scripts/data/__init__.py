"""Datasets, dictionary transforms and sampling."""

from scripts.data.sampling import EpochBatches, RepeatedDataset
from scripts.data.transforms import (
    LogDensityd,
    MapsReader,
    NormaliseDensityd,
    OntoGridd,
    PresenceLabeld,
    density_dataset,
    density_transforms,
    linear_transforms,
)

__all__ = [
    "EpochBatches",
    "LogDensityd",
    "MapsReader",
    "NormaliseDensityd",
    "OntoGridd",
    "PresenceLabeld",
    "RepeatedDataset",
    "density_dataset",
    "density_transforms",
    "linear_transforms",
]
