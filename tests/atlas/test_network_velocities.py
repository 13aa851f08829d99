"""What an export takes from a published model instead of a training."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.atlas.building import build_network
from scripts.atlas.components import atlas_loss, cohort_transforms
from scripts.atlas.network_velocities import NetworkVelocities
from scripts.atlas.published_components import in_box
from scripts.data import density_dataset
from scripts.spatial.grid import CropBox


@pytest.fixture
def velocities(make_cohort, make_settings):
    """Velocities of a cohort to K untrained templates."""

    def make(n_templates=1, **options):
        settings = make_settings(model={"n_templates": n_templates})
        cohort = make_cohort(spread=3.0)
        dataset = density_dataset(cohort.datalist(), cohort_transforms(cohort, settings))
        network = build_network(cohort, settings, dataset).eval()
        loss = atlas_loss(cohort.grid.spacing, settings)
        return NetworkVelocities(network, dataset, loss, **options)

    return make


def test_the_networks_velocity_or_a_better_one(velocities):
    plain, refined = velocities(), velocities(iterations=5, lr=0.3)
    losses = []
    for source in (plain, refined):
        network, image, velocity = source.network, source.image(0), source.velocity(0)
        warped = network.warped_template(network.displacement(velocity), 0)
        losses.append(float(source.loss(warped, image, velocity)["loss"].detach()))
    assert torch.equal(plain.velocity(0), plain.network.velocity(plain.image(0)))
    assert losses[1] < losses[0]
    assert torch.equal(plain.assignment, torch.ones(4, 1))


def test_subjects_are_shared_out_by_their_losses(velocities):
    shares = velocities(n_templates=2).assignment
    assert shares.shape == (4, 2)
    assert torch.allclose(shares.sum(1), torch.ones(4))
    # Templates are means of two clusters; the bumps lie in a row.
    assigned = shares.argmax(1)
    assert assigned[0] == assigned[1]
    assert assigned[2] == assigned[3]
    assert assigned[0] != assigned[3]


def test_a_cohort_in_a_smaller_box_reports_what_it_loses(make_cohort, caplog):
    cohort = make_cohort()
    assert in_box(cohort, cohort.crop, "x") is cohort
    wide = CropBox((0, 0, 0), cohort.grid.shape)
    with caplog.at_level(logging.WARNING):
        wider = in_box(cohort, wide, "x")
        assert not caplog.records
        half = CropBox((0, 0, 0), (7, 12, 13))
        smaller = in_box(wider, half, "x")
    assert "of the density of the cohort in x is outside" in caplog.text
    assert wider.mean_density.shape == (1, *cohort.grid.shape)
    assert wider.mean_density.sum() == pytest.approx(cohort.mean_density.sum())
    assert np.array_equal(smaller.mean_density, half.crop(wider.mean_density))
    assert smaller.subjects == replace(cohort, crop=half).subjects
