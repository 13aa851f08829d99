"""K-means of fibres without a direction."""

import numpy as np
import pytest
import torch

from scripts.transport.clusters import cluster_classes, cluster_fibres, flipped


@pytest.fixture
def fibres(bundles):
    lines, classes = bundles(30)
    return torch.as_tensor(lines.reshape(len(lines), -1)), torch.as_tensor(classes)


def test_flipping_twice_is_nothing(fibres):
    x, _ = fibres
    assert torch.equal(flipped(flipped(x)), x)
    assert torch.equal(flipped(x)[0].view(-1, 3), x[0].view(-1, 3).flip(0))


def test_members_are_turned_like_their_centre(fibres):
    x, classes = fibres
    result = cluster_fibres(x, 12, seed=0)
    alike = torch.where(result.turned[:, None], flipped(x), x)
    own = (alike - result.centres[result.labels]).norm(dim=1)
    every = torch.minimum(torch.cdist(x, result.centres), torch.cdist(flipped(x), result.centres))
    torch.testing.assert_close(own, every.amin(1), rtol=1e-3, atol=1e-2)
    assert result.scale == pytest.approx(float(own.square().mean().sqrt()), rel=1e-3)
    # Bundles are 30 mm apart: no cluster spans two.
    assert all(len(classes[result.labels == k].unique()) == 1 for k in result.labels.unique())


@pytest.mark.parametrize("count", [1, 7, 150, 1000])
def test_no_cluster_is_empty_not_even_with_more_than_fibres(fibres, count):
    x, _ = fibres
    result = cluster_fibres(x, count, seed=0)
    assert 1 <= len(result.centres) <= min(count, len(x))
    assert torch.equal(result.labels.unique(), torch.arange(len(result.centres)))
    assert torch.isfinite(result.centres).all()


def test_equal_fibres_fall_into_one_cluster():
    x = torch.randn(1, 30).repeat(50, 1)
    result = cluster_fibres(x, 5, seed=0)
    assert len(result.centres) == 1
    assert result.scale == pytest.approx(0, abs=1e-2)


def test_the_seed_decides(fibres):
    x, _ = fibres
    one, again, other = (cluster_fibres(x, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(one.centres, again.centres)
    assert not torch.equal(one.centres, other.centres)


def test_classes_are_never_mixed(fibres):
    x, _ = fibres
    classes = torch.as_tensor(np.random.default_rng(0).integers(0, 9, len(x)))
    classes[0] = 9  # a class of one
    result = cluster_classes(x, classes, 20, seed=0)
    assert torch.equal(result.labels.unique(), torch.arange(len(result.centres)))
    assert all(len(classes[result.labels == k].unique()) == 1 for k in result.labels.unique())
    assert len(result.centres) >= 10
