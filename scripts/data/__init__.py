"""Datasets, dictionary transforms and sampling."""

from scripts.data.density_loading import density_dataset, density_transforms, linear_transforms
from scripts.data.maps_reader import MapsReader
from scripts.data.onto_grid import OntoGridd
from scripts.data.sampling import EpochBatches, RepeatedDataset
from scripts.data.transforms import LogDensityd, NormaliseDensityd, PresenceLabeld

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
