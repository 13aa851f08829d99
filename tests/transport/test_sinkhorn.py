"""Potentials and masses: against GeomLoss, brute force and a closed form."""

import math

import pytest
import torch

from scripts.transport.clusters import cluster_classes, cluster_fibres, flipped
from scripts.transport.sinkhorn import Annealing, Fine, class_masses, solve, temperatures
from scripts.transport.sums import Columns, PlanSums, Rows

ANNEALING = Annealing(blur=3.0, reach=20.0, scaling=0.5)


def sides(bundles, dtype=torch.float32, seeds=(1, 2), per_bundle=(16, 12), lost=0.0):
    made = [bundles(n, seed=s) for n, s in zip(per_bundle, seeds, strict=True)]
    x, y = (torch.as_tensor(f.reshape(len(f), -1) / math.sqrt(15)).to(dtype) for f, _ in made)
    if lost:
        x[-3:] += lost
    return x, y, torch.as_tensor(made[1][1])


def both(x):
    return torch.cat([x, flipped(x)])


def multiscale(x, y, classes, clusters=15, threads=1):
    of_x, of_y = cluster_fibres(x, clusters, 0), cluster_classes(y, classes, clusters, 0)
    fine = Fine(x, y, of_x, of_y, threads)
    return fine, solve(x, y, ANNEALING, fine, of_x, of_y)


def brute_minima(x, y, f, g, eps):
    """Both soft minima in float64, mirror images and all."""
    cost = torch.cdist(both(x.double()), both(y.double())).square() / 2
    level_f, level_g = f.double().repeat(2) / eps, g.double().repeat(2) / eps
    rows = -eps * (torch.logsumexp(level_g - cost / eps, 1) - math.log(2 * len(y)))
    columns = -eps * (torch.logsumexp(level_f[:, None] - cost / eps, 0) - math.log(2 * len(x)))
    return rows[: len(x)], columns[: len(y)]


@pytest.mark.parametrize("scaling", [0.5, 0.8])
def test_potentials_are_those_of_geomloss_dense_solver(bundles, scaling):
    from geomloss import SamplesLoss

    x, y, _ = sides(bundles, torch.float64, lost=8.0)
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=3.0, reach=20.0, scaling=scaling, debias=False, potentials=True,
        backend="tensorized",
    )  # fmt: skip
    f, g = (potential.reshape(-1) for potential in loss(both(x), both(y)))
    result = solve(x, y, Annealing(3.0, 20.0, scaling), Fine(x, y, None, None, 1))
    torch.testing.assert_close(result.f, f[: len(x)], rtol=0, atol=1e-8)
    torch.testing.assert_close(result.g, g[: len(y)], rtol=0, atol=1e-8)
    x, y = x.float(), y.float()
    single = solve(x, y, Annealing(3.0, 20.0, scaling), Fine(x, y, None, None, 1))
    torch.testing.assert_close(single.g.double(), g[: len(y)], rtol=1e-4, atol=0.01)


def test_a_single_pair_has_the_closed_form():
    """f = g = lambda eps log 2 / (1 + lambda): half of the other side is the far mirror image."""
    x = torch.linspace(-50, 50, 10)[:, None].repeat(1, 3).reshape(1, -1).double()
    annealing = Annealing(3.0, 20.0, 0.9)
    result = solve(x, x, annealing, Fine(x, x, None, None, 1))
    damping = 1 / (1 + 9 / 400)
    expected = damping * 9 * math.log(2) / (1 + damping)
    assert float(result.f) == pytest.approx(expected, rel=1e-3)
    assert float(result.g) == pytest.approx(expected, rel=1e-3)


def test_temperatures_fall_to_the_blur():
    assert temperatures(40.0, 3.0, 0.5) == [1600, 1600, 400, 100, 25, 9]
    assert temperatures(2.0, 3.0, 0.5) == [4.0, 9.0]
    assert temperatures(0.0, 3.0, 0.5) == [0.0, 9.0] or temperatures(0.0, 3.0, 0.5) == [9.0, 9.0]


@pytest.mark.parametrize("eps", [9.0, 100.0])
def test_leaving_blocks_out_costs_less_than_its_bound(bundles, eps):
    x, y, classes = sides(bundles, lost=5.0)
    fine, potentials = multiscale(x, y, classes)
    rows, columns = fine.sums.soft_minima(potentials.f, potentials.g, eps)
    given = fine.given(potentials)
    expected = brute_minima(x, y, given.f, given.g, eps)
    assert torch.allclose(rows.double(), expected[0][fine.x_order], atol=2e-3 * eps)
    assert torch.allclose(columns.double(), expected[1][fine.y_order], atol=2e-3 * eps)


def test_blocks_are_left_out(bundles):
    x, y, classes = sides(bundles, per_bundle=(60, 60))
    fine, potentials = multiscale(x, y, classes, 30)
    before = fine.sums.evaluated
    fine.sums.soft_minima(potentials.f, potentials.g, 9.0)
    assert fine.sums.evaluated - before < 0.5 * 2 * len(x) * len(y)


@pytest.mark.parametrize("far", [1e3, 1e5])
def test_fibres_beyond_float32s_range_have_finite_potentials_and_no_mass(bundles, far):
    x, y, classes = sides(bundles)
    x[0] += far
    for fine, potentials in (
        multiscale(x, y, classes),
        (plain := Fine(x, y, None, None, 1), solve(x, y, ANNEALING, plain)),
    ):
        assert torch.isfinite(potentials.f).all()
        assert torch.isfinite(potentials.g).all()
        masses = class_masses(fine, potentials, classes, ANNEALING)
        assert torch.isfinite(masses).all()
        assert float(masses[0].max()) == 0
        assert float(masses[1:].sum(1).min()) > 0.3


def test_masses_follow_from_the_atlas_potentials_alone(bundles):
    x, y, classes = sides(bundles, lost=4.0)
    fine, potentials = multiscale(x, y, classes)
    masses = class_masses(fine, potentials, classes, ANNEALING)
    g = fine.given(potentials).g
    minima, _ = brute_minima(x, y, torch.zeros(len(x)), g, 9.0)
    f = minima / (1 + 9 / 400)
    cost = torch.cdist(x.double(), both(y.double())).square() / 2
    plan = ((f[:, None] + g.double().repeat(2) - cost) / 9).exp() / (2 * len(y))
    expected = torch.zeros(len(x), 5, dtype=torch.float64).index_add_(1, classes.repeat(2), plan)
    torch.testing.assert_close(masses.double(), expected, rtol=2e-3, atol=1e-4)
    # What is left of a fibre's mass falls with its potential: exp(-F / rho).
    torch.testing.assert_close(
        masses.sum(1).double(), (-f / 400).exp(), rtol=2e-3, atol=1e-4
    )  # fmt: skip


def test_stale_potentials_of_the_subject_do_not_matter(bundles):
    x, y, classes = sides(bundles)
    fine, potentials = multiscale(x, y, classes)
    expected = class_masses(fine, potentials, classes, ANNEALING)
    stale = type(potentials)(potentials.f - 400.0, potentials.g)
    torch.testing.assert_close(
        class_masses(fine, stale, classes, ANNEALING), expected, rtol=2e-3, atol=1e-4
    )


def test_threads_do_not_change_a_bit(bundles):
    x, y, classes = sides(bundles, per_bundle=(80, 60))
    (one, first), (two, second) = (multiscale(x, y, classes, 30, threads=n) for n in (1, 2))
    assert torch.equal(first.f, second.f)
    assert torch.equal(first.g, second.g)
    assert torch.equal(
        *(class_masses(fine, p, classes, ANNEALING) for fine, p in ((one, first), (two, second)))
    )


def test_interruption_ends_a_pass_in_threads(bundles):
    x, y, _ = sides(bundles, per_bundle=(200, 40))
    weights = [torch.full((len(side),), 1 / len(side)) for side in (x, y)]
    starts = [*range(0, len(x), 50), len(x)]
    sums = PlanSums(Rows(x, weights[0], starts), Columns(y, weights[1]), threads=2)

    def stop(share):
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        sums.soft_minima(torch.zeros(len(x)), torch.zeros(len(y)), 100.0, stop)
    assert torch.get_num_threads() == before
