"""Whether a store's fields fit its images, or only with swapped or negated channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from scripts.errors import CohortError
from scripts.supervised.layers import warp_image
from scripts.supervised.pair_store import PairStore

__all__ = ["check_orientation", "orientation_scores"]

_PAIRS = 8  # the first ones with a displacement to speak of
_LEAST = 0.5  # pixels, mean length of such a displacement
_BETTER = 0.02  # correlation by which another reading must be better to be the right one


def orientation_scores(
    moving: np.ndarray, reference: np.ndarray, field: np.ndarray, inverse: np.ndarray
) -> dict[str, float]:
    """Correlation of reference and warped moving image, for each way to read a pair's fields.

    Contrast may be inverted, so that the correlation's size counts.

    Args:
        moving: ``(*shape)``.
        reference: ``(*shape)``.
        field: ``(d, *shape)`` as read.
        inverse: the field back.

    Returns:
        ``""`` for the unchanged fields, ``"no field"``, and each other reading by its name.
    """
    d = len(field)
    readings: dict[str, np.ndarray] = {"": field, "no field": np.zeros_like(field)}
    for order in itertools.permutations(range(d)):
        for sign in (1, -1):
            words = []
            if order != tuple(range(d)):
                words.append("its channels swapped" if d == 2 else f"its channels in the order "
                             f"{', '.join(map(str, order))}")  # fmt: skip
            if sign < 0:
                words.append("its sign negated")
            if words:
                readings[" and ".join(words)] = sign * field[list(order)]
    readings["both fields exchanged"] = inverse
    image = torch.from_numpy(moving.astype(np.float32))[None, None]
    wanted = reference.astype(np.float64)
    scores = {}
    for name, one in readings.items():
        warped = warp_image(image, torch.from_numpy(np.ascontiguousarray(one))[None])[0, 0].numpy()
        flat = np.ptp(warped) == 0 or np.ptp(wanted) == 0
        scores[name] = (
            0.0 if flat else abs(float(np.corrcoef(warped.ravel(), wanted.ravel())[0, 1]))
        )
    return scores


def check_orientation(store: PairStore, indexes: Sequence[int]) -> None:
    """Refuse a store whose fields fit only when read in another way.

    Raises:
        CohortError: the message says in which.
    """
    scores: list[dict[str, float]] = []
    for index in indexes:
        pair = store.read(index)
        assert pair.field is not None and pair.inverse is not None and pair.reference is not None
        if float(np.sqrt((pair.field**2).sum(0)).mean()) < _LEAST:
            continue
        scores.append(orientation_scores(pair.moving, pair.reference, pair.field, pair.inverse))
        if len(scores) == _PAIRS:
            break
    if not scores:
        return
    means = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
    given, still = means.pop(""), means.pop("no field")
    best = max(means, key=lambda name: means[name])
    if means[best] > max(given, still) + _BETTER:
        names = " and ".join(store.fields)
        raise CohortError(
            f"{store.path}: {names} fit its images only with {best}: the first {len(scores)} "
            f"moving images then correlate with their references by {means[best]:.3f}, unchanged "
            f"by {given:.3f}, without a field by {still:.3f}; registered(x) = img(x + deltas(x)), "
            + (
                "channel 0 of deltas_xy runs along columns, channel 1 along rows"
                if len(store.shape) == 2
                else "channel i of deltas runs along axis i"
            )
        )
