"""Tractograms: read and written in parts, traversed exactly, counted into density maps."""

from scripts.tractograms.arrays import ARRAY
from scripts.tractograms.density import DensityCounter, count_tractogram
from scripts.tractograms.reading import (
    CHUNK,
    SUFFIXES,
    Tractogram,
    is_tractogram,
    open_tractogram,
    streamlines_of,
)
from scripts.tractograms.streamlines import Streamlines, TractogramError, resample
from scripts.tractograms.traversal import Visits, visited_voxels
from scripts.tractograms.weights import Weights, open_weights
from scripts.tractograms.writing import write_tractogram

__all__ = [
    "ARRAY",
    "CHUNK",
    "SUFFIXES",
    "DensityCounter",
    "Streamlines",
    "Tractogram",
    "TractogramError",
    "Visits",
    "Weights",
    "count_tractogram",
    "is_tractogram",
    "open_tractogram",
    "open_weights",
    "resample",
    "streamlines_of",
    "visited_voxels",
    "write_tractogram",
]
