"""Labels of fibres: right, the same whichever way fibres run, in memory that grows linearly."""

import logging
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bundle.bench.transport_phantom import synthetic_fibres
from scripts.settings.label_transfer import LabelTransferConfig
from scripts.tractograms import Streamlines
from scripts.transport import geomloss_solver
from scripts.transport.features import fibre_features
from scripts.transport.labelling import OUTLIER, label_fibres


def vectors(fibres):
    return fibre_features(Streamlines.of(list(fibres)), 20, 2.0).vectors


def settings(**values):
    return LabelTransferConfig.load({"threads": 1, **values})


@pytest.fixture(scope="module")
def synthetic():
    subject, truth, atlas, classes = synthetic_fibres(1500)
    return subject, vectors(subject), truth, vectors(atlas), classes


@pytest.mark.parametrize("solver", ["dense", "multiscale"])
def test_bundles_and_outliers_are_reported(synthetic, solver):
    _, x, truth, y, classes = synthetic
    result = label_fibres(x, y, classes, settings(solver=solver))
    inlier = truth >= 0
    assert (result.classes == truth)[inlier].mean() >= 0.99
    assert (result.classes == OUTLIER)[~inlier].mean() >= 0.6
    assert np.isfinite(result.largest).all()
    assert 0.7 < result.masses.sum() <= 1


def test_reversing_streamlines_changes_nothing(synthetic):
    subject, x, _, y, classes = synthetic
    turned = subject.copy()
    turned[::3] = turned[::3, ::-1]
    one, other = (label_fibres(v, y, classes, settings()) for v in (x, vectors(turned)))
    assert np.array_equal(one.classes, other.classes)
    assert np.array_equal(one.largest, other.largest)


def test_same_seed_same_labels_and_another_one_hardly_differs(synthetic):
    _, x, _, y, classes = synthetic
    one, again, other = (
        label_fibres(x, y, classes, settings(solver="multiscale", seed=seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.classes, again.classes)
    assert np.array_equal(one.largest, again.largest)
    assert not np.array_equal(one.largest, other.largest)
    assert (one.classes == other.classes).mean() > 0.98


class _Largest(TorchDispatchMode):
    """Number of entries of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.entries = max(self.entries, one.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("solver", ["dense", "multiscale"])
def test_memory_grows_linearly(solver):
    largest = []
    for count in (1000, 2000):
        subject, _, atlas, classes = synthetic_fibres(count)
        x, y = vectors(subject), vectors(atlas)
        # Few iterations: all of them make the same.
        with _Largest() as mode:
            label_fibres(x, y, classes, settings(solver=solver, blur=100.0, n_clusters=20))
        largest.append(mode.entries)
        assert mode.entries < 150 * (len(x) + len(y))
    assert largest[1] <= 2.2 * largest[0]


def test_a_class_of_one_fibre_and_an_atlas_of_one(synthetic):
    _, x, truth, y, classes = synthetic
    lone = np.flatnonzero(truth == 7)[0]
    kept = np.flatnonzero(classes != 7)
    atlas = np.concatenate([y[kept], x[lone : lone + 1]])
    numbers = np.concatenate([classes[kept], [7]])
    for solver in ("dense", "multiscale"):
        result = label_fibres(x, atlas, numbers, settings(solver=solver))
        assert result.classes[lone] == 7
        single = label_fibres(x[:1], x[:1], np.zeros(1, np.int64), settings(solver=solver))
        assert single.classes.tolist() == [0]


def test_all_may_be_outliers_and_none_there(synthetic):
    _, x, _, y, classes = synthetic
    result = label_fibres(x[:50] + 200, y, classes, settings(solver="multiscale"))
    assert (result.classes == OUTLIER).all()
    assert np.isfinite(result.largest).all()
    none = label_fibres(x[:0], y, classes, settings())
    assert none.classes.shape == (0,)
    assert none.masses.sum() == 0


def test_progress_adds_up_to_the_whole(synthetic):
    _, x, _, y, classes = synthetic
    for solver in ("dense", "multiscale"):
        steps = []

        def begin(total, steps=steps):
            steps.append(-total)
            return steps.append

        label_fibres(x[:200], y[::5], classes[::5], settings(solver=solver), begin)
        assert sum(steps) == pytest.approx(0, abs=1e-6)
        assert len(steps) > 2


def test_without_keops_there_is_one_warning_and_our_solver(synthetic, monkeypatch, caplog):
    _, x, _, y, classes = synthetic
    monkeypatch.setitem(sys.modules, "pykeops", None)
    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    geomloss_solver.geomloss_works.cache_clear()
    with caplog.at_level(logging.WARNING):
        result = [label_fibres(x, y, classes, settings(solver="geomloss")) for _ in range(2)]
    geomloss_solver.geomloss_works.cache_clear()
    assert sum("geomloss" in one.message for one in caplog.records) == 1
    expected = label_fibres(x, y, classes, settings(solver="multiscale"))
    assert np.array_equal(result[0].largest, expected.largest)
    assert result[1].solver["name"] == "multiscale"
