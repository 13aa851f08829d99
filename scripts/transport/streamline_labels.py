"""Classes of streamlines in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.settings.label_transfer import LabelTransferConfig
from scripts.tractograms import Streamlines
from scripts.transport.features import fibre_features
from scripts.transport.labelling import OUTLIER, label_fibres
from scripts.transport.segmented_atlas import read_atlas

__all__ = ["label_streamlines", "labelled_atlas"]


def labelled_atlas(
    path: str | Path, settings: LabelTransferConfig
) -> tuple[Streamlines, np.ndarray]:
    """The streamlines of an atlas's files and ``(M,)`` class numbers; see `read_atlas`."""
    atlas = read_atlas(path, settings.labels, settings.names)
    return atlas.streamlines, atlas.ids[atlas.classes]


def label_streamlines(
    subject: Streamlines, atlas: Streamlines, labels: np.ndarray, settings: LabelTransferConfig
) -> np.ndarray:
    """Propagate classes from the streamlines of an atlas to those of a subject.

    Args:
        subject: N streamlines, RAS mm, in the atlas's space.
        atlas: M streamlines.
        labels: ``(M,)`` whole numbers from 0.
        settings: of the transport.

    Returns:
        ``(N,)`` int64, class numbers; -1 for a streamline that resembles no class.

    Raises:
        ValueError: the labels can't be used, or no streamline of the atlas has a length.
    """
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (len(atlas),) or not whole or labels.min(initial=0) < 0:
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: must be a whole number "
            f"from 0 for each of the atlas's {len(atlas)} streamlines"
        )
    of_subject, of_atlas = (
        fibre_features(one, settings.n_points, settings.end_weight) for one in (subject, atlas)
    )
    if not len(of_atlas.kept):
        raise ValueError("atlas: has no streamline with a length")
    ids, classes = np.unique(labels[of_atlas.kept], return_inverse=True)
    estimated = label_fibres(of_subject.vectors, of_atlas.vectors, classes, settings).classes
    result = np.full(of_subject.count, OUTLIER, dtype=np.int64)
    result[of_subject.kept] = np.where(estimated == OUTLIER, OUTLIER, ids[estimated])
    return result
