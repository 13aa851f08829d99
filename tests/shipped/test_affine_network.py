"""The affine network that ships: its pairs, its training, its file, what it finds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.cli import main
from scripts.errors import CheckpointError
from scripts.networks.described import description_in
from scripts.shipped.affine_network import AffinePairNetwork
from scripts.shipped.affine_pairs import AffinePairGenerator
from scripts.shipped.affine_training import AffinePairTraining, affine_pair_loss
from scripts.shipped.centred_grid import centred_grid
from scripts.shipped.weights import (
    SHIPPED,
    SHIPPED_AFFINE,
    load_affine_pair_network,
    save_pair_network,
)
from scripts.spatial.warp import warp

SMALL = ((16, 20, 16),)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(np.corrcoef(one.flatten(), other.flatten())[0, 1])


def test_a_pair_is_the_same_each_time_and_its_move_leads_from_one_to_the_other() -> None:
    pairs = AffinePairGenerator(3, ((28, 32, 28),), flow=0.5)
    assert torch.equal(pairs[4].fixed, pairs[4].fixed)
    kinds, gains = set(), []
    for index in range(8):
        pair = pairs[index]
        kinds.add(pair.kind)
        assert float(pair.moving.min()) >= 0 and float(pair.fixed.min()) >= 0
        moved = warp(pair.moving, pair.move)
        gains.append(correlation(moved, pair.fixed) - correlation(pair.moving, pair.fixed))
    assert kinds == {"bundles", "images"}
    assert np.median(gains) > 0.2 and min(gains) > -0.05


def test_moves_are_affine_without_a_flow_and_within_their_range() -> None:
    pairs = AffinePairGenerator(
        0, ((12, 14, 12),), rotation=20, translation=0, scale=0, shear=0, flow=0
    )
    for index in range(4):
        move = pairs[index].move[0].double()
        grid = centred_grid(move.shape[1:])
        axes = [torch.arange(n, dtype=torch.float64) for n in move.shape[1:]]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        place = grid[:3, :3] @ place + grid[:3, 3:]
        there = place + move.flatten(1)
        turn = torch.linalg.lstsq(place.T, there.T).solution.T
        assert torch.allclose(turn @ place, there, atol=1e-4)
        assert torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-4)
        angle = math.degrees(math.acos(min(1.0, (float(turn.trace()) - 1) / 2)))
        assert angle <= 20.001


def test_an_untrained_network_leaves_images_where_they_are() -> None:
    pair = AffinePairGenerator(0, SMALL)[0]
    network = AffinePairNetwork((4, 4), (4, 4), passes=(2, 1), seed=0)
    with torch.no_grad():
        result = network(pair.moving, pair.fixed)
    assert len(result) == 2
    assert torch.allclose(result[-1].matrix, torch.eye(4, dtype=torch.float64), atol=1e-3)
    start = torch.eye(4, dtype=torch.float64)[None]
    start[0, 0, 3] = 2.0
    with torch.no_grad():
        moved = network(pair.moving, pair.fixed, [1], start, "rigid")[-1]
    assert torch.equal(moved.before, start)
    assert torch.allclose(moved.matrix, start, atol=1e-3)


def training(folder: Path, steps: int = 4) -> AffinePairTraining:
    network = AffinePairNetwork((4, 4), (4, 4), passes=(2, 1), seed=0)
    return AffinePairTraining(
        network, AffinePairGenerator(0, SMALL), folder, steps, 1e-2, 2, 0.1, "float32", 2, 1
    )


def weights(made: AffinePairTraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


def test_training_moves_the_weights_and_a_cut_leaves_no_trace(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole")
    start = weights(whole)
    whole.run()
    assert not torch.equal(weights(whole), start)
    cut = training(tmp_path / "cut")
    for _ in range(2):
        cut.curve.append(cut._take_step())
        cut.step += 1
    cut._save()
    resumed = training(tmp_path / "cut")
    resumed.run()
    assert torch.equal(weights(resumed), weights(whole))
    rows = json.loads((tmp_path / "whole" / "curve.json").read_text())
    assert len(rows) == 4 and set(rows[0]) == {"loss", "error", "move"}
    again = load_affine_pair_network(tmp_path / "whole" / "network.pt")
    assert again.description["training"]["batch"] == 2


def test_a_training_that_ends_worse_than_none_writes_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, with a learning rate that no training survives."""
    words = (
        "train-registration-affine", "--output_dir", tmp_path, "--steps", 12, "--trainer#lr", 30.0,
        "--trainer#dtype", "float32", "--network_def#enc_features", "[4,4]",
        "--network_def#dec_features", "[4,4]", "--pairs#shapes", "[[20,20,20]]",
        "--network_def#passes",
    )  # fmt: skip
    assert main([*map(str, words), "[2,1]"]) == 4
    assert "the network is worse than none" in capsys.readouterr().err
    assert not (tmp_path / "registration_affine" / "network.pt").exists()
    assert main([*map(str, words), "[2]"]) == 2
    assert "network_def.passes = (2,): must end with 1" in capsys.readouterr().err


def test_the_file_is_small_plain_tensors_and_describes_itself(tmp_path: Path) -> None:
    assert SHIPPED_AFFINE.stat().st_size < 2_000_000
    description = description_in(torch.load(SHIPPED_AFFINE, weights_only=True))
    assert description["licence"] == "Apache-2.0"
    assert "no data of people" in description["data"]
    assert description["training"]["step"] == description["training"]["steps"]
    network = load_affine_pair_network()
    save_pair_network(network, tmp_path / "a.pt", {"licence": "none"})
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state["unet.field.bias"] += 1
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="the file is damaged or was changed"):
        load_affine_pair_network(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="its kind is 'pair registration'"):
        load_affine_pair_network(SHIPPED)


def test_pairs_that_it_never_saw_lose_most_of_their_distance() -> None:
    """Of another seed than the training's, within 30 degrees."""
    network = load_affine_pair_network()
    assert network.description["training"]["seed"] == 0
    pairs = AffinePairGenerator(1, ((32, 32, 32),), rotation=30)
    errors, moves = 0.0, 0.0
    for index in range(10):
        with torch.no_grad():
            terms = affine_pair_loss(network, pairs[index], 0.0, "float32")
        errors += float(terms["error"])
        moves += float(terms["move"])
    assert errors / moves < 0.45
