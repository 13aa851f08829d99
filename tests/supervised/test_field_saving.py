"""Networks in files: together, separately, damaged, foreign."""

from __future__ import annotations

import json

import pytest
import torch

from scripts.errors import CheckpointError, StorageError
from scripts.settings.train_fields import TrainFieldsConfig
from scripts.supervised.loading import open_field_pairs
from scripts.supervised.saving import (
    build_field_network,
    check_places,
    load_field_network,
    save_field_network,
    saved_optimizer,
)

MODEL = {
    "global_filters": [4, 4], "dense": 8, "start_filters": [4], "down_filters": [4, 4],
    "middle_filters": [4], "up_filters": [4, 4], "end_filters": [4],
}  # fmt: skip


@pytest.fixture
def made(make_store, tmp_path):
    """Builds and saves a network of a kind; gives settings, network and path."""
    store = make_store(count=2)

    def make(network="local", save="together", **changes):
        epochs = {"epochs": 0} if network == "merged" else {}
        settings = TrainFieldsConfig.load(
            {"pairs": str(store), "device": "cpu", "network": network, "save": save,
             "model": MODEL, "optimizer": epochs, **changes}
        )  # fmt: skip
        result = build_field_network(open_field_pairs(settings), settings, tmp_path)
        optimizer = torch.optim.Adam(result.parameters(), lr=1e-3)
        path = tmp_path / f"fields_{network}.pt"
        if network != "merged":
            result(torch.rand(1, 2, 40, 56)).sum().backward()
            optimizer.step()
        save_field_network(path, result, optimizer, settings)
        return settings, result, path

    return make


@pytest.mark.parametrize("save", ["together", "separate"])
@pytest.mark.parametrize("network", ["global", "local"])
def test_a_saved_network_gives_the_same_fields(made, network, save):
    _, before, path = made(network, save)
    again = load_field_network(path, network)
    pair = torch.rand(1, 2, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(again(pair), before(pair), rtol=0, atol=0)
    assert again.description["shape"] == [40, 56]
    assert again.description["model"]["down_filters"] == [4, 4]
    assert "background" in again.description["standardisation"]
    assert path.exists() == (save == "together")
    assert (saved_optimizer(path) is None) == (save == "separate")


def test_a_merged_network_joins_both_and_is_read_again(made, tmp_path):
    parts = [made("global")[1], made("local", save="separate")[1]]
    torch.nn.init.normal_(parts[0].parameters_of.weight, std=0.01)
    _, merged, path = made("merged")
    pair = torch.rand(1, 2, 40, 56)
    again = load_field_network(path, "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(pair), merged(pair), rtol=0, atol=0)
        left = merged.local_network
        torch.testing.assert_close(left(pair), parts[1].eval()(pair))


def test_the_other_place_of_a_name_is_cleared(made, tmp_path):
    made("local", "separate")
    assert (tmp_path / "fields_local" / "weights.pt").is_file()
    made("local", "together")
    assert not (tmp_path / "fields_local").exists()
    made("local", "separate")
    assert not (tmp_path / "fields_local.pt").exists()


def test_overwrite_false_refuses_either_place(made, tmp_path):
    check_places(tmp_path / "fields_local.pt", overwrite=False)
    for save in ("together", "separate"):
        made("local", save)
        check_places(tmp_path / "fields_local.pt", overwrite=True)
        with pytest.raises(StorageError, match=r"exists already; .*train_fields#overwrite true"):
            check_places(tmp_path / "fields_local.pt", overwrite=False)


@pytest.mark.parametrize("place", ["fields_local.pt", "fields_local/weights.pt"])
def test_files_of_others_are_never_replaced(made, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(StorageError, match="would be replaced"):
        check_places(tmp_path / "fields_local.pt", overwrite=True)
    assert (tmp_path / place).read_text() == "mine"


@pytest.mark.parametrize("save", ["together", "separate"])
def test_every_flipped_bit_is_reported(made, tmp_path, save):
    _, _, path = made("global", save)
    file = path if save == "together" else tmp_path / "fields_global" / "weights.pt"
    raw = file.read_bytes()
    for place in range(0, len(raw), max(1, len(raw) // 60)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=file.name):
            load_field_network(path, "global")


def test_training_continues_from_a_network_and_its_optimiser(made):
    _, before, path = made("local")
    state = saved_optimizer(path)
    assert state is not None
    assert state["state"][0]["step"] == 1
    settings, after, _ = made("local", start=str(path))
    assert settings.start is not None
    wider = {**MODEL, "end_filters": [6]}
    made("local")
    with pytest.raises(CheckpointError, match="belongs to a network with other settings"):
        made("local", start=str(path), model=wider)
    assert sum(p.numel() for p in after.parameters()) == sum(p.numel() for p in before.parameters())


@pytest.mark.parametrize("cut", [0, 100, 2000])
def test_damaged_files_are_refused_in_one_line(made, cut):
    _, _, path = made("local")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"fields_local\.pt") as raised:
        load_field_network(path, "local")
    assert "\n" not in str(raised.value)


def test_other_files_are_refused(made, tmp_path):
    _, _, path = made("local")
    with pytest.raises(CheckpointError, match="is a local network, not a global one"):
        load_field_network(path, "global")
    torch.save({"network": {"x": torch.zeros(1)}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="a network of fields"):
        load_field_network(tmp_path / "foreign.pt", "local")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_field_network(tmp_path / "none.pt", "local")
    result = torch.load(path)
    del result["network"]["field.weight"]
    torch.save(result, path)
    with pytest.raises(CheckpointError, match="damaged or of another kind"):
        load_field_network(path, "local")


def test_a_description_that_is_not_of_its_weights_is_refused(made, tmp_path):
    _, _, path = made("local", "separate")
    about = tmp_path / "fields_local" / "network.json"
    content = json.loads(about.read_text())
    content["shape"] = [99, 99]
    about.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="isn't of the weights beside it"):
        load_field_network(path, "local")
    about.write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_field_network(path, "local")
