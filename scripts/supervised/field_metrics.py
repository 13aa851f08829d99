"""All measures of a predicted pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scripts.metrics.fields import (
    field_errors,
    image_likeness,
    label_ancestors,
    label_overlap,
    landmark_errors,
    tissue_mask,
)
from scripts.metrics.guards import inverse_consistency
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.warp import warp
from scripts.supervised.layers import warp_image

__all__ = ["label_metrics", "mean_metrics", "pair_metrics"]


def pair_metrics(
    estimate: np.ndarray,
    inverse: np.ndarray,
    reference: np.ndarray,
    moving: np.ndarray,
    true: np.ndarray | None = None,
) -> dict[str, float]:
    """Errors of a pair, and beside them (``..._zero``) those of no field at all.

    Args:
        estimate: predicted displacement ``(d, *shape)`` pixels.
        inverse: predicted displacement back.
        reference: ``(1, *shape)`` from 0 to 1.
        moving: ``(1, *shape)``.
        true: true displacement; None: only what needs none.

    Returns:
        See `field_errors`, `image_likeness` (against the reference); ``inverse`` (consistency,
        pixels, r.m.s.), ``folded`` (share of det J <= 0) and ``least_det``, each on all pixels and
        in tissue.
    """
    tissue = tissue_mask(reference[0])
    image = torch.from_numpy(moving)[None]
    moved = warp_image(image, torch.from_numpy(estimate)[None])[0, 0].numpy()
    numbers: dict[str, float] = {}
    for ending, field, warped in (
        ("", estimate, moved),
        ("_zero", np.zeros_like(estimate), moving[0]),
    ):
        if true is not None:
            errors = field_errors(field, true, tissue)
            numbers |= {f"{name}{ending}": value for name, value in errors.items()}
        likeness = image_likeness(warped, reference[0])
        numbers |= {f"{name}{ending}": value for name, value in likeness.items()}
    determinant = jacobian_determinant(torch.from_numpy(estimate)).numpy()
    for ending, mask in (("", np.ones_like(tissue)), ("_tissue", tissue)):
        numbers[f"folded{ending}"] = float((determinant[mask] <= 0).mean())
        numbers[f"least_det{ending}"] = float(determinant[mask].min())
    numbers["inverse"] = _consistency(estimate, inverse, None)
    numbers["inverse_tissue"] = _consistency(estimate, inverse, tissue)
    return numbers


def _consistency(estimate: np.ndarray, inverse: np.ndarray, mask: np.ndarray | None) -> float:
    if not (np.isfinite(estimate).all() and np.isfinite(inverse).all()):
        return float("nan")
    value = inverse_consistency(estimate, inverse, mask)
    return 0.0 if np.isnan(value) else value


def label_metrics(
    estimate: np.ndarray,
    extras: dict[str, np.ndarray],
    tree: dict[int, int | None] | None = None,
) -> dict[str, float]:
    """Overlap of warped labels and errors of landmarks, where a store has them.

    Args:
        estimate: predicted displacement ``(d, *shape)``.
        extras: of a store, see `PairStore.extras`.
        tree: parent of each label: overlap is also measured at each depth.
    """
    numbers: dict[str, float] = {}
    if {"img_labels", "ref_labels"} <= extras.keys():
        labels = extras["img_labels"]
        values, places = np.unique(labels, return_inverse=True)
        places = places.reshape(labels.shape).astype(np.float64)
        for ending, field in (("", estimate), ("_zero", np.zeros_like(estimate))):
            # The number of a label's entry instead of the label: float64 holds it exactly.
            moved = warp(
                torch.from_numpy(places)[None, None], torch.from_numpy(field)[None].double(),
                mode="nearest", padding_mode="border",
            )  # fmt: skip
            warped = values[moved[0, 0].long().numpy()]
            for depth in [None, *range(_depth(tree))]:
                ancestors = None if depth is None or tree is None else label_ancestors(tree, depth)
                level = "" if depth is None else f"_depth{depth}"
                overlap = label_overlap(warped, extras["ref_labels"], ancestors)
                numbers |= {f"{name}{level}{ending}": value for name, value in overlap.items()}
    if {"img_landmarks", "ref_landmarks"} <= extras.keys():
        numbers |= landmark_errors(estimate, extras["ref_landmarks"], extras["img_landmarks"])
    return numbers


def _depth(tree: dict[int, int | None] | None) -> int:
    """Depths of a tree: 1 for roots alone."""
    if not tree:
        return 0
    depths: dict[int, int] = {}
    for label in tree:
        depth, parent = 1, tree[label]
        while parent is not None and depth <= len(tree):
            depth, parent = depth + 1, tree.get(parent)
        depths[label] = depth
    return max(depths.values())


def mean_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each number over the pairs that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    means = {}
    for name in names:
        values = [row[name] for row in rows if isinstance(row.get(name), float)]
        if values:
            means[name] = float(np.mean(values))
    return means
