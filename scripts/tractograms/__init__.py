"""Tractograms: read and written piece by piece, traversed exactly, counted into density maps."""

from scripts.tractograms.reading import (
    CHUNK,
    SUFFIXES,
    Tractogram,
    is_tractogram,
    open_tractogram,
)
from scripts.tractograms.streamlines import Streamlines, TractogramError, resample
from scripts.tractograms.writing import write_tractogram

__all__ = [
    "CHUNK",
    "SUFFIXES",
    "Streamlines",
    "Tractogram",
    "TractogramError",
    "is_tractogram",
    "open_tractogram",
    "resample",
    "write_tractogram",
]
