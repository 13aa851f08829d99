"""How near a predicted displacement, and what it moves, come to the truth: pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from scripts.metrics.correlation import pearson

__all__ = [
    "angular_error",
    "field_errors",
    "image_likeness",
    "label_ancestors",
    "label_overlap",
    "landmark_errors",
    "tissue_mask",
    "vector_distance",
]

FloatArray = NDArray[np.floating]
Mask = NDArray[np.bool_]
Numbers = dict[str, float]

_TISSUE = 0.1  # of the image's range above its background
_SSIM_WINDOW = 11


def tissue_mask(image: NDArray) -> Mask:
    """Where an image differs from its background by a tenth of its range.

    The background is the median of the outermost pixels. An image without such pixels counts whole.

    Example:
        >>> image = np.zeros((5, 5)); image[2, 2] = 1
        >>> int(tissue_mask(image).sum())
        1
    """
    values = np.asarray(image, dtype=np.float64)
    faces = [
        np.take(values, place, axis).ravel() for axis in range(values.ndim) for place in (0, -1)
    ]
    far = np.abs(values - np.median(np.concatenate(faces)))
    mask = far > _TISSUE * far.max()
    return mask if mask.any() else np.ones(values.shape, dtype=bool)


def vector_distance(estimate: FloatArray, true: FloatArray, mask: Mask | None = None) -> float:
    """Mean distance between two displacements ``(d, *shape)``, in their unit."""
    far = np.sqrt(((estimate.astype(np.float64) - true) ** 2).sum(0))
    return float(far.mean() if mask is None else far[mask].mean())


def angular_error(estimate: FloatArray, true: FloatArray, mask: Mask | None = None) -> float:
    """Mean angle between ``(estimate, 1)`` and ``(true, 1)``, degrees.

    Barron, Fleet and Beauchemin, IJCV 1994: the further component, one pixel, keeps the angle
    defined where nothing moves.
    """
    a, b = (one.astype(np.float64) for one in (estimate, true))
    both = (a * b).sum(0) + 1
    lengths = np.sqrt(((a**2).sum(0) + 1) * ((b**2).sum(0) + 1))
    angle = np.degrees(np.arccos(np.clip(both / lengths, -1, 1)))
    return float(angle.mean() if mask is None else angle[mask].mean())


def field_errors(estimate: FloatArray, true: FloatArray, tissue: Mask) -> Numbers:
    """Errors of a displacement, on all pixels and (``..._tissue``) in tissue.

    Args:
        estimate: ``(d, *shape)`` pixels.
        true: the same shape.
        tissue: ``(*shape)``.

    Returns:
        ``distance`` (pixels), ``angle`` (degrees), ``r2`` = 1 - sum |estimate - true|^2 / sum |true
        - mean of true|^2; 0 for a constant truth that isn't met exactly.
    """
    numbers: Numbers = {}
    everywhere = np.ones(tissue.shape, dtype=bool)
    for ending, mask in (("", everywhere), ("_tissue", tissue)):
        a, b = (one[:, mask].astype(np.float64) for one in (estimate, true))
        left = float(((a - b) ** 2).sum())
        spread = float(((b - b.mean(1, keepdims=True)) ** 2).sum())
        numbers[f"distance{ending}"] = vector_distance(estimate, true, mask)
        numbers[f"angle{ending}"] = angular_error(estimate, true, mask)
        numbers[f"r2{ending}"] = 1 - left / spread if spread > 0 else float(left == 0)
    return numbers


def image_likeness(estimate: FloatArray, true: FloatArray) -> Numbers:
    """``correlation``, ``psnr`` (dB, range 1) and ``ssim`` of images ``(*shape)`` from 0 to 1.

    ``psnr`` of equal images is 99; ``ssim`` is left out of images smaller than its window.
    """
    error = float(((estimate.astype(np.float64) - true) ** 2).mean())
    numbers = {
        "correlation": pearson(estimate, true) or 0.0,
        "psnr": min(99.0, -10 * float(np.log10(max(error, 1e-12)))),
    }
    if min(estimate.shape) >= _SSIM_WINDOW:
        metric = SSIMMetric(estimate.ndim, data_range=1.0, win_size=_SSIM_WINDOW)
        pair = (torch.from_numpy(np.array(one, np.float32))[None, None] for one in (estimate, true))
        value = metric(*pair)
        assert isinstance(value, torch.Tensor)
        numbers["ssim"] = float(value.mean())
    return numbers


def label_ancestors(tree: Mapping[int, int | None], depth: int) -> dict[int, int]:
    """Each label's ancestor at a depth, itself where it lies above; the roots have depth 0.

    Example:
        >>> label_ancestors({1: None, 2: 1, 3: 2}, depth=1)
        {1: 1, 2: 2, 3: 2}

    Raises:
        ValueError: a label is an ancestor of itself.
    """
    result = {}
    for label in tree:
        line: list[int] = [label]
        while (parent := tree.get(line[-1])) is not None:
            if parent in line:
                raise ValueError(f"label {label} is an ancestor of itself")
            line.append(parent)
        result[label] = line[::-1][min(depth, len(line) - 1)]
    return result


def label_overlap(
    estimate: NDArray[np.integer],
    true: NDArray[np.integer],
    ancestors: Mapping[int, int] | None = None,
) -> Numbers:
    """Mean ``dice`` and ``iou`` over the labels but 0 that either image holds.

    Args:
        estimate: labels ``(*shape)``.
        true: the same shape.
        ancestors: the label to take in place of each, see `label_ancestors`; others stay.

    Returns:
        nothing where neither image holds a label.
    """
    if ancestors is not None:
        estimate, true = (_replaced(one, ancestors) for one in (estimate, true))
    dice, iou = [], []
    for label in np.union1d(estimate, true):
        if label == 0:
            continue
        a, b = estimate == label, true == label
        both, either = int((a & b).sum()), int((a | b).sum())
        dice.append(2 * both / (both + either))
        iou.append(both / either)
    return {"dice": float(np.mean(dice)), "iou": float(np.mean(iou))} if dice else {}


def _replaced(labels: NDArray[np.integer], ancestors: Mapping[int, int]) -> NDArray[np.integer]:
    values, places = np.unique(labels, return_inverse=True)
    return np.array([ancestors.get(int(v), int(v)) for v in values])[places].reshape(labels.shape)


def landmark_errors(field: FloatArray, reference: FloatArray, moving: FloatArray) -> Numbers:
    """How far landmarks of the reference are taken from those of the moving image.

    Args:
        field: displacement ``(d, *shape)`` pixels, reference to moving.
        reference: ``(n, d)`` pixels along the axes; rows that aren't finite don't count.
        moving: ``(n, d)``.

    Returns:
        means ``landmarks`` (pixels), ``landmarks_start`` (without a field), ``landmarks_relative``
        (of the image's diagonal), ``landmarks_improvement`` (share of the start that is gone);
        nothing without landmarks.
    """
    present = np.isfinite(reference).all(1) & np.isfinite(moving).all(1)
    if not present.any():
        return {}
    points, wanted = reference[present], moving[present]
    moves = np.stack([map_coordinates(one, points.T, order=1, mode="nearest") for one in field], 1)
    error = float(np.linalg.norm(points + moves - wanted, axis=1).mean())
    start = float(np.linalg.norm(points - wanted, axis=1).mean())
    diagonal = float(np.linalg.norm(field.shape[1:]))
    return {
        "landmarks": error,
        "landmarks_start": start,
        "landmarks_relative": error / diagonal,
        "landmarks_improvement": 1 - error / start if start > 0 else float(error == 0),
    }
