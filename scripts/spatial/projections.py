"""Maximum projections of a volume along its three axes."""

from __future__ import annotations

import numpy as np

__all__ = ["three_views"]


def three_views(volume: np.ndarray, gap: int = 2) -> np.ndarray:
    """Maximum projections along the three axes, side by side, with superior and anterior up.

    Args:
        volume: ``(X, Y, Z)``; ``(X, Y)`` is returned as its only view.
        gap: columns of zeros between the views.

    Returns:
        A picture ``(rows, columns)``.
    """
    if volume.ndim == 2:
        return np.flipud(volume.T)
    views = [np.flipud(volume.max(axis).T) for axis in range(3)]
    height = max(view.shape[0] for view in views)
    padded = [np.pad(view, ((height - view.shape[0], 0), (0, gap))) for view in views]
    return np.concatenate(padded, axis=1)
