"""Scores of an atlas against the truth of a demo cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from scripts.metrics.correlation import log_density_correlation
from scripts.metrics.overlap import dice, pairwise_dice
from scripts.phantom.truth import SubjectTruth, Truth, load_truth

__all__ = ["landmark_scatter", "load_truth", "score_atlas", "warp_sparse_maps"]

FloatArray = NDArray[np.floating]
PRESENT = 0.5
"""A bundle covers the voxels whose (interpolated) streamline count exceeds this."""
MARGIN = 2
"""Margin in voxels around every region that is sampled."""


def score_atlas(
    truth: Truth,
    to_template: Sequence[FloatArray],
    to_subject: Sequence[FloatArray],
    template: FloatArray | None = None,
    subjects: Sequence[SubjectTruth] | None = None,
    anatomy: int = 0,
) -> dict[str, float]:
    """Score estimated displacements, and a template, against the truth of a demo cohort.

    Args:
        truth: from :func:`load_truth`.
        to_template: per subject a displacement (3, X, Y, Z) in voxels on the template grid:
            template point x corresponds to x + u(x) in the subject.
        to_subject: per subject a displacement on the subject grid: subject point y corresponds to
            y + v(y) in the template.
        template: density (X, Y, Z) of the template on the full grid, normalised by waytotal.
        subjects: the subjects of the displacements (default: the training subjects with that
            anatomy).
        anatomy: index of the central anatomy that the template represents.

    Returns:
        * ``pair_dice``: Dice of two subjects' bundles in template space (linear interpolation,
          count > 0.5), mean over bundles and pairs;
        * ``bridge_dice``: the other subjects' bundles (count > 0.5) in template space, averaged,
          propagated to subject i, thresholded at 0.5 (a majority), Dice with the bundles of i; mean
          over bundles and subjects;
        * ``vol``: volume of a bundle in template space over its volume in the subject, mean
        likewise;
        * ``tre``, ``shift``: :func:`landmark_scatter`, voxels;
        * ``r_to_truth``: correlation of the logarithms of the template and of the central density,
          log1p(x / x0) with x0 one streamline of an average subject, where either is above 0
          (only if a template is given).

    Raises:
        ValueError: there are fewer than 2 subjects, the numbers of subjects and fields differ, or
            a field has another shape.
    """
    people = (
        tuple(person for person in truth.training if person.anatomy == anatomy)
        if subjects is None
        else tuple(subjects)
    )
    if len(people) < 2:
        raise ValueError(f"a score needs at least 2 subjects, got {len(people)}")
    shape = truth.central.shape[1:]
    _check_fields(people, to_template, shape, "to_template")
    _check_fields(people, to_subject, shape, "to_subject")

    present = [i for i, m in enumerate(truth.central_bundles[anatomy]) if m.any()]
    native = np.stack([person.bundles[present] for person in people])
    in_template = np.stack(
        [warp_sparse_maps(maps, field) for maps, field in zip(native, to_template, strict=True)]
    )
    mine, warped = native > PRESENT, in_template > PRESENT

    axes = tuple(range(2, native.ndim))
    scores = {
        "pair_dice": float(
            np.mean([pairwise_dice(warped[:, bundle]) for bundle in range(len(present))])
        ),
        "bridge_dice": _bridge_dice(warped, mine, to_subject),
        "vol": float(np.mean(warped.sum(axes) / np.maximum(mine.sum(axes), 1))),
    }
    support = truth.central[anatomy] > 0
    scores["tre"], scores["shift"] = landmark_scatter(people, to_template, support)
    if template is not None:
        one = 1 / float(np.mean([person.waytotal for person in people]))
        scores["r_to_truth"] = log_density_correlation(template, truth.central[anatomy], one)
    return scores


def landmark_scatter(
    subjects: Sequence[SubjectTruth],
    to_template: Sequence[FloatArray],
    support: NDArray[np.bool_],
) -> tuple[float, float]:
    """Where template points map to in the true central anatomy.

    Template point x corresponds to y_i = x + u_i(x) in subject i, and truly to
    c_i(x) = y_i + v_i(y_i) in the central anatomy; v_i is the subject's true displacement.

    Args:
        subjects: the subjects.
        to_template: estimated displacements u_i (3, X, Y, Z), voxels.
        support: template points (X, Y, Z) to evaluate.

    Returns:
        tre: r.m.s. of c_i(x) - mean_i c_i(x) over subjects and points, voxels;
        shift: r.m.s. of mean_i c_i(x) - x over points, voxels.
    """
    points = np.argwhere(support).T.astype(np.float64)
    places = []
    for subject, field in zip(subjects, to_template, strict=True):
        moved = points + np.stack([part[support] for part in field])
        places.append(moved + _look_up(subject.to_subject, moved, "nearest"))
    place = np.stack(places)
    mean = place.mean(0)
    tre = np.sqrt(((place - mean) ** 2).sum(1).mean())
    shift = np.sqrt(((mean - points) ** 2).sum(0).mean())
    return float(tre), float(shift)


def _bridge_dice(
    warped: NDArray[np.bool_], mine: NDArray[np.bool_], to_subject: Sequence[FloatArray]
) -> float:
    votes = warped.sum(0, dtype=np.float32)
    scores = []
    for maps, subject_maps, field in zip(warped, mine, to_subject, strict=True):
        # Votes instead of counts: averaged counts would reward methods that swell the tracts.
        others = (votes - maps) / (len(warped) - 1)
        propagated = warp_sparse_maps(others, field) > PRESENT
        scores.append(np.mean([dice(a, b) for a, b in zip(propagated, subject_maps, strict=True)]))
    return float(np.mean(scores))


def _check_fields(
    people: Sequence[SubjectTruth],
    fields: Sequence[FloatArray],
    shape: tuple[int, ...],
    name: str,
) -> None:
    if len(fields) != len(people):
        raise ValueError(f"{name}: {len(fields)} fields for {len(people)} subjects")
    for person, field in zip(people, fields, strict=True):
        if field.shape != (3, *shape):
            raise ValueError(
                f"{name} of {person.name} has shape {field.shape}, expected {(3, *shape)}"
            )


def warp_sparse_maps(maps: FloatArray, displacement: FloatArray) -> FloatArray:
    """Maps (C, X, Y, Z) resampled at x + u(x), linearly, 0 outside.

    A map is sampled only where x + u(x) is near its support: tracts are sparse, and this takes a
    seventh of the time of `scripts.spatial.transforms.resample` (`bundle.bench.resampling`).
    """
    shape = maps.shape[1:]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    moved = (grid + displacement).astype(np.float32)
    out = np.zeros_like(maps)
    for channel, volume in enumerate(maps):
        filled = np.argwhere(volume)
        if not len(filled):
            continue
        low, high = filled.min(0) - MARGIN, filled.max(0) + MARGIN
        near = np.all([(t > a) & (t < b) for t, a, b in zip(moved, low, high, strict=True)], axis=0)
        out[channel][near] = map_coordinates(volume, moved[:, near], order=1)
    return out


def _look_up(field: FloatArray, points: FloatArray, mode: str) -> FloatArray:
    return np.stack([map_coordinates(part, points, order=1, mode=mode) for part in field])
