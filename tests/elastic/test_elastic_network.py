"""Registration across contrasts: synthesis, overlap, and a phantom of inverted contrast."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.elastic.network import (
    ElasticNetwork,
    build_elastic_network,
    load_elastic_network,
    register_images,
)
from scripts.elastic.registrar import log_gain
from scripts.elastic.synthesis import (
    LabelMapsd,
    SyntheticPair,
    SyntheticPairsOfLabels,
    label_values,
    painted,
)
from scripts.elastic.training import ElasticLoss, soft_overlap
from scripts.errors import CheckpointError, CohortError
from scripts.pairwise.images import read_pair_images
from scripts.pairwise.network_grid import WorkingGrid
from scripts.registration.field_gain import FieldGain
from scripts.settings.elastic import LearnedElasticConfig
from scripts.spatial.warp import warp

SHAPE = (24, 24)
SMALL = {"enc_features": [8, 16, 16], "dec_features": [16, 16, 16], "field_resolution": 2}


def shapes(centre: float = 0.0, shape=SHAPE) -> torch.Tensor:
    """Two label maps ``(1, 2, *shape)``: a disc, and a ring about it."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    mesh = torch.meshgrid(*axes, indexing="ij")
    away = sum((x - centre) ** 2 for x in mesh).sqrt()
    disc = torch.sigmoid((0.25 - away) * 30)
    ring = torch.sigmoid((0.55 - away) * 30) - disc
    return torch.stack([disc, ring])[None]


def maker(shape=SHAPE, **settings) -> SyntheticPairsOfLabels:
    config = LearnedElasticConfig.load({"synthesis": settings}).synthesis
    return SyntheticPairsOfLabels(shape, config, seed=1)


@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 16)], ids=["2d", "3d"])
def test_pairs_depend_on_the_key_alone_and_show_two_contrasts(shape):
    made = maker(shape)
    labels = torch.cat([shapes(0.0, shape), shapes(0.2, shape)])
    first, again, other = made(labels, (0, 1)), made(labels, (0, 1)), made(labels, (0, 2))
    assert torch.equal(first.pair, again.pair)
    assert torch.equal(first.fixed, again.fixed)
    assert not torch.equal(first.pair, other.pair)
    assert first.pair.shape == (2, 2, *shape)
    assert float(first.pair.min()) >= 0 and float(first.pair.max()) <= 1
    assert float((first.fixed - first.moving).abs().max()) > 0.1  # other shapes


def test_a_label_has_its_shade_and_overlaps_are_averaged():
    labels = torch.zeros(1, 2, 4, 4)
    labels[0, 0, :2], labels[0, 1, 1:3] = 1, 1
    image = painted(labels, torch.tensor([[0.2, 0.8]]), torch.tensor([0.1]))[0, 0, :, 0]
    torch.testing.assert_close(image, torch.tensor([0.2, 0.5, 0.8, 0.1]))


def test_two_subjects_are_paired_when_asked():
    labels = torch.cat([shapes(0.0), shapes(0.3)])
    made = maker(warp=0.0, between_subjects=1.0)(labels, (0, 0))
    assert torch.equal(made.fixed, labels)
    assert torch.equal(made.moving, labels.roll(-1, 0))


def test_overlap_is_one_for_equal_maps_and_leaves_absent_labels_out():
    labels = shapes()
    with_absent = torch.cat([labels, torch.zeros(1, 1, *SHAPE)], dim=1)
    torch.testing.assert_close(soft_overlap(with_absent, with_absent), torch.ones(1))
    empty = torch.zeros_like(labels)
    torch.testing.assert_close(soft_overlap(empty, empty), torch.ones(1))
    torch.testing.assert_close(soft_overlap(labels, empty), torch.zeros(1))
    first, second = torch.zeros(2, 1, 1, 4, 4)
    first[..., :2, :], second[..., 1:3, :] = 1, 1
    torch.testing.assert_close(soft_overlap(first, second), torch.tensor([0.5]))


def test_contrast_has_no_part_in_the_loss():
    network, loss = ElasticNetwork(WorkingGrid(SHAPE, 1.0), **SMALL), ElasticLoss(2, 2)
    made = maker()(shapes(), (0, 0))
    velocity = torch.zeros(1, 2, 12, 12)
    inverted = SyntheticPair(1 - made.pair, made.fixed, made.moving)
    plain, other = (loss(network, velocity, one)["loss"] for one in (made, inverted))
    assert torch.equal(plain, other)
    same = SyntheticPair(made.pair, made.fixed, made.fixed)
    assert float(loss(network, velocity, same)["loss"]) < 1e-6 < float(plain)


def test_trained_on_labels_it_registers_a_phantom_of_inverted_contrast():
    """Neither image, nor its contrast, was in the training: only shapes in random shades."""
    torch.manual_seed(0)
    grid = WorkingGrid(SHAPE, 2.0)
    network, loss = ElasticNetwork(grid, **SMALL), ElasticLoss(2, 2, smoothness_weight=0.02)
    pairs = maker(warp=1.0, between_subjects=1.0, probability=0.0)
    labels = torch.cat([shapes(c) for c in (0.0, 0.15, -0.15, 0.05, 0.1, -0.1, -0.05, 0.2)])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(300):
        made = pairs(labels, (0, step))
        optimizer.zero_grad()
        loss(network, network.velocity(made.pair), made)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    fixed, moving = shapes(0.12), shapes(-0.1)
    bright = painted(fixed, torch.tensor([[0.9, 0.5]]), torch.zeros(1))[0, 0].numpy()
    dark = painted(moving, torch.tensor([[0.2, 0.6]]), torch.ones(1))[0, 0].numpy()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    displacement, warped = register_images(network, bright, affine, dark, affine)
    before = float(soft_overlap(moving, fixed))
    after = float(soft_overlap(warp(moving, displacement[None]), fixed))
    assert warped.shape == (1, *SHAPE)
    assert after > before + 0.25, (before, after)


def test_a_network_goes_through_its_file(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(2):
        volume = np.zeros((8, 8, 8), np.float32)
        volume[2:5, 2:6, 2 + number : 5], volume[5:7, 2:6, 2:5] = 3, 7
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"s{number}.nii.gz")
    settings = LearnedElasticConfig.load(
        {
            "device": "cpu",
            "fold": None,
            "images": {"layout": "flat", "kind": "labels", "shape": [16, 16, 16]},
            "model": SMALL,
        }
    )
    images = read_pair_images(folder, settings)
    values = label_values(images, settings)
    assert values == [3, 7]
    maps = LabelMapsd("image", images.grid, values)(images.training()[0])["image"]
    assert maps.shape == (2, 16, 16, 16)
    volumes = maps.sum((1, 2, 3)) * images.grid.spacing**3
    assert volumes.tolist() == pytest.approx([36, 24], rel=0.05)  # mm^3 of the boxes

    network = build_elastic_network(images, settings, values)
    torch.nn.init.normal_(network.unet.field.weight, std=0.1)
    torch.save(network.state_dict(), tmp_path / "elastic_model.pt")
    read = load_elastic_network(tmp_path / "elastic_model.pt")
    pair = torch.rand(1, 2, 16, 16, 16)
    assert torch.equal(read(pair), network.eval()(pair))
    assert read.description["labels"] == [3, 7]
    forward, backward = read.displacements(read.velocity(pair))
    assert float((forward + warp(backward, forward)).abs().mean()) < 0.2 * float(
        forward.abs().mean()
    )

    torch.save({"described": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: contains no elastic network"):
        load_elastic_network(tmp_path / "other.pt")


def test_presence_maps_are_nested_and_label_volumes_must_hold_labels(tmp_path):
    density = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(density, np.eye(4)), tmp_path / "a.nii.gz")
    block = {"device": "cpu", "fold": None, "min_subjects": 1}
    images_of = {"layout": "flat", "shape": [16, 16, 16]}
    presence = LearnedElasticConfig.load({**block, "images": images_of})
    images = read_pair_images(tmp_path, presence)
    assert label_values(images, presence) == []
    maps = LabelMapsd("image", images.grid, [], [0.2, 0.8])(images.training()[0])["image"]
    assert maps.shape[0] == 2
    assert bool((maps[0] >= maps[1] - 1e-6).all())
    labels = LearnedElasticConfig.load({**block, "images": {**images_of, "kind": "labels"}})
    with pytest.raises(CohortError, match=r"a\.nii\.gz: not a label volume: 512 different"):
        label_values(images, labels)
    wide = np.zeros((8, 8, 8), np.uint64)
    wide[:4], wide[0] = 2**53, 2**53 + 1  # equal as float64
    image = nib.Nifti1Image(wide, np.eye(4), dtype=np.uint64)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(CohortError, match=r"a\.nii\.gz: has a label of 9\.007e\+15.*use smaller"):
        label_values(read_pair_images(tmp_path, labels), labels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones(SHAPE), "the moving image is constant"),
        (np.full(SHAPE, np.nan), "the moving image is not finite"),
        (np.ones((4, 4, 4)), "the moving image has 3 dimensions, the network has 2"),
    ],
)
def test_images_without_sense_are_refused(data, message):
    network = ElasticNetwork(WorkingGrid(SHAPE, 1.0), **SMALL)
    fixed = shapes()[0, 0].numpy()
    with pytest.raises(CohortError, match=message):
        register_images(network, fixed, np.eye(4), data, np.eye(4))


def test_images_without_anything_in_common_are_reported(caplog):
    log_gain(FieldGain(False, loss=0.3, start_loss=0.4))
    assert "nothing in common" not in caplog.text
    log_gain(FieldGain(False, loss=0.999, start_loss=1.0))
    assert "the images have nothing in common" in caplog.text
