"""The file that ships: small, safe to load, true to its checksum, and it registers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.errors import CheckpointError
from scripts.networks.described import description_in
from scripts.networks.integration import VelocityIntegration
from scripts.shipped.network import PairNetwork
from scripts.shipped.pairs import PairGenerator
from scripts.shipped.weights import SHIPPED, load_pair_network, save_pair_network


def test_the_file_is_small_plain_tensors_and_describes_itself() -> None:
    assert SHIPPED.stat().st_size < 2_000_000
    description = description_in(torch.load(SHIPPED, weights_only=True))
    assert description["licence"] == "Apache-2.0"
    assert "no data of people" in description["data"]
    assert description["training"]["step"] == description["training"]["steps"]
    assert description["passes"] == [4, 2, 2, 2, 1, 1]
    assert len(description["sha256"]) == 64


def test_pairs_that_it_never_saw_lose_most_of_their_move() -> None:
    """Of another seed than the training's; the figure of the whole training is in the file."""
    network = load_pair_network()
    assert network.description["training"]["seed"] == 0
    integration = VelocityIntegration(7, 2)
    left: dict[str, list[tuple[float, float]]] = {"bundles": [], "images": []}
    for index in range(8):
        pair = PairGenerator(1, ((40, 40, 40),))[index]
        with torch.no_grad():
            result = network(pair.moving, pair.fixed)[-1]
        true = integration(pair.velocity, pair.moving.shape[2:])
        here = integration(result, pair.moving.shape[2:])
        tissue = pair.tissue[0, 0]
        errors = [float(u.square().sum(1).sqrt()[0][tissue].mean()) for u in (here - true, true)]
        left[pair.kind].append((errors[0], errors[1]))
    for kind, most in (("bundles", 0.6), ("images", 0.8)):
        after, before = np.sum(left[kind], axis=0)
        assert after / before < most


def test_equal_images_stay_where_they_are() -> None:
    pair = PairGenerator(1, ((32, 32, 32),))[0]
    with torch.no_grad():
        result = load_pair_network()(pair.fixed, pair.fixed)[-1]
    assert float(result.square().sum(1).mean().sqrt()) < 0.3


def test_what_is_written_is_read_and_a_change_is_detected(tmp_path: Path) -> None:
    network = PairNetwork((4, 4), (4, 4, 4), passes=(2, 1), seed=0)
    save_pair_network(network, tmp_path / "a.pt", {"licence": "none"})
    again = load_pair_network(tmp_path / "a.pt")
    assert again.passes == (2, 1)
    assert again.description["licence"] == "none"
    for name, value in network.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state["unet.field.bias"] += 1
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="the file is damaged or was changed"):
        load_pair_network(tmp_path / "b.pt")


@pytest.mark.parametrize("inputs", ["pair", "copies", "costs"])
def test_a_network_of_other_inputs_is_read_with_them(inputs: str, tmp_path: Path) -> None:
    network = PairNetwork((4, 4), (4, 4, 4), passes=(2, 1), seed=0, inputs=inputs)
    torch.nn.init.normal_(network.unet.field.weight, std=0.03)
    save_pair_network(network, tmp_path / "a.pt")
    again = load_pair_network(tmp_path / "a.pt")
    assert again.description["inputs"] == again.inputs.name == inputs
    pair = PairGenerator(1, ((16, 16, 16),))[0]
    with torch.no_grad():
        result = again(pair.moving, pair.fixed)[-1]
        assert torch.equal(result, network(pair.moving, pair.fixed)[-1])
    assert float(result.abs().max()) > 1e-3


def test_a_file_that_names_no_inputs_is_of_forces(tmp_path: Path) -> None:
    """Such as those that were written before there were others."""
    save_pair_network(PairNetwork((4, 4), (4, 4, 4), passes=(2, 1), seed=0), tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    description = description_in(state)
    assert description.pop("inputs") == "forces"
    state["described"] = torch.frombuffer(
        bytearray(json.dumps(description).encode()), dtype=torch.uint8
    )
    torch.save(state, tmp_path / "b.pt")
    assert load_pair_network(tmp_path / "b.pt").inputs.name == "forces"
    assert load_pair_network().inputs.name == "forces"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_pair_network(tmp_path / "none.pt")
    shutil.copy(SHIPPED, tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a checkpoint that can be loaded"):
        load_pair_network(tmp_path / "cut.pt")
    state = torch.load(SHIPPED, weights_only=True)
    description = {**description_in(state), "kind": "another"}
    text = bytearray(json.dumps(description).encode())
    state["described"] = torch.frombuffer(text, dtype=torch.uint8)
    torch.save(state, tmp_path / "kind.pt")
    with pytest.raises(CheckpointError, match="its kind is 'another'"):
        load_pair_network(tmp_path / "kind.pt")
