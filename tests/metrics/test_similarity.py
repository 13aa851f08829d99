"""Similarity metrics against MONAI, scipy and closed forms."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from scipy.stats import entropy, pearsonr, spearmanr

from scripts.metrics.similarity import (
    correlation_metrics,
    distance_metrics,
    distribution_metrics,
    overlap_metrics,
    present,
)

SPACING = (1.0, 2.0, 1.5)


@pytest.fixture
def pair():
    axes = np.indices((16, 15, 14))

    def blob(centre):
        return np.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / 12)

    return blob((7, 7, 7)), blob((8, 6, 7.5))


def as_batch(mask):
    return torch.from_numpy(mask[None, None].astype(np.float32))


def test_thresholds_are_strict():
    x = np.array([0.0, 0.5, 1.0, 2.0])
    assert present(x, 0.25).tolist() == [False, False, True, True]
    assert present(x, 1.0, "absolute").tolist() == [False, False, False, True]
    assert not present(np.zeros(3), 0.05).any()


def test_overlap_by_hand():
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 1], bool)
    assert overlap_metrics(a, b) == pytest.approx(
        {"dice": 4 / 7, "jaccard": 2 / 5, "volume_ratio": 3 / 4, "sensitivity": 2 / 3,
         "precision": 1 / 2}
    )  # fmt: skip
    none = np.zeros(5, bool)
    empty = overlap_metrics(none, none)
    assert (empty["dice"], empty["jaccard"], empty["volume_ratio"]) == (1.0, 1.0, None)


def test_overlap_and_distances_are_monais(pair):
    a, b = (present(m, 0.3) for m in pair)
    x, y = as_batch(a), as_batch(b)
    assert overlap_metrics(a, b)["dice"] == pytest.approx(float(compute_dice(x, y)), abs=1e-6)
    result = distance_metrics(a, b, SPACING)
    hd95 = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=SPACING)
    assert result["hd95"] == pytest.approx(float(hd95), abs=1e-4)
    surface = compute_average_surface_distance(
        x, y, include_background=True, symmetric=True, spacing=SPACING
    )
    assert result["mean_surface"] == pytest.approx(float(surface), abs=1e-4)


def test_a_shifted_box_is_as_far_as_it_was_shifted():
    a, b = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    a[2:5, 3:6, 4:7] = True
    b[2:5, 6:9, 4:7] = True
    result = distance_metrics(a, b, SPACING)
    assert result["centroid"] == pytest.approx(6.0)
    assert result["hd95"] == pytest.approx(6.0)
    assert set(distance_metrics(a, a & False, SPACING).values()) == {None}


def test_correlations_are_scipys(pair):
    a, b = pair
    where = present(a, 0.1) | present(b, 0.1)
    result = correlation_metrics(a, b, where)
    x, y = a[where], b[where]
    assert result["pearson"] == pytest.approx(pearsonr(x, y).statistic)
    assert result["spearman"] == pytest.approx(spearmanr(x, y).statistic)
    assert result["cosine"] == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))
    assert correlation_metrics(a, 0 * b, where)["pearson"] is None


def test_distributions_are_scipys(pair):
    a, b = pair
    where = present(a, 0.1) | present(b, 0.1)
    result = distribution_metrics(a, b, where)
    x, y = a[where] / a.max(), b[where] / b.max()
    p, q = (np.histogram(v, 64, (0, 1))[0] / v.size for v in (x, y))
    joint = np.histogram2d(x, y, 64, [[0, 1], [0, 1]])[0].ravel() / x.size
    assert result["nmi"] == pytest.approx((entropy(p) + entropy(q)) / entropy(joint))
    assert result["bhattacharyya"] == pytest.approx(np.sqrt(p * q).sum())
    p, q = p + 1e-10, q + 1e-10
    assert result["symmetric_kl"] == pytest.approx(entropy(p, q) + entropy(q, p))


def test_equal_maps_have_the_best_of_every_number(pair):
    a = pair[0]
    where = present(a, 0.05)
    assert distribution_metrics(a, a, where) == pytest.approx(
        {"nmi": 2.0, "symmetric_kl": 0.0, "bhattacharyya": 1.0}
    )
    assert distance_metrics(where, where, SPACING) == {
        "hd95": 0.0, "mean_surface": 0.0, "centroid": 0.0
    }  # fmt: skip
