"""A model contains its settings; those of a later job replace them."""

import json

import pytest
import torch

from scripts.atlas.building import build_network
from scripts.atlas.published_components import open_network
from scripts.atlas.published_model import published_network, published_settings
from scripts.errors import CheckpointError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def network(make_network):
    return make_network(
        cohort={"layout": "flat"}, save_fields=False, optimizer={"epochs": 7},
        model={"passes": [2, 1, 1]},
        refine={"network_epochs": 5},
    )  # fmt: skip


def test_what_isnt_asked_for_is_the_trainings(network, make_settings):
    result = published_settings(network, LearnedAtlasConfig.load({"device": "cpu"}))
    trained = make_settings(
        cohort={"layout": "flat"}, save_fields=False, optimizer={"epochs": 7},
        model={"passes": [2, 1, 1]},
        refine={"network_epochs": 5},
    )  # fmt: skip
    assert result == trained


def test_what_is_asked_for_stands_over_it(network):
    asked = {"device": "cuda:3", "save_fields": True, "cohort": {"layout": "bids"}}
    result = published_settings(network, LearnedAtlasConfig.load(asked))
    assert (result.device, result.save_fields, result.cohort.layout) == ("cuda:3", True, "bids")
    assert result.optimizer.epochs == 7
    assert network.description["settings"]["cohort"]["layout"] == "flat"


def test_the_device_is_the_jobs_also_when_it_names_none(network):
    assert published_settings(network, LearnedAtlasConfig.load({})).device == "cuda"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cohort": {"normalisation": "max"}}, "cohort.normalisation = 'max': .* with 'none'"),
        ({"cohort": {"tracts": ["af"]}}, "cohort.tracts"),
        ({"model": {"int_steps": 3}}, "model.int_steps = 3: the model was trained with 5"),
        ({"loss": {"log_offset": 1}}, "loss.log_offset = 1.0"),
        ({"optimizer": {"epochs": 8}}, "optimizer.epochs = 8: the model was trained with 7"),
        ({"refine": {"rounds": 1}}, "refine.rounds = 1"),
        ({"refine": {"network_epochs": 6}}, "refine.network_epochs = 6"),
        ({"refine": {"network_lr": 0.1}}, "refine.network_lr = 0.1"),
    ],
)
def test_what_made_the_model_cant_be_changed(asked, message, network):
    with pytest.raises(CheckpointError, match=message):
        published_settings(network, LearnedAtlasConfig.load(asked))


def test_a_model_that_says_nothing_of_passes_was_made_with_one(network, tmp_path):
    description = network.description
    assert description["settings"]["model"].pop("passes") != [1]
    text = bytearray(json.dumps(description).encode())
    network.described = torch.frombuffer(text, dtype=torch.uint8)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    older = published_network(tmp_path / "model.pt")
    assert older.passes == (1,)
    assert published_settings(older, LearnedAtlasConfig.load({})).model.passes == [1]
    asked = LearnedAtlasConfig.load({"model": {"passes": [2, 1]}, "device": "cpu"})
    assert published_settings(older, asked).model.passes == [2, 1]  # any network can pass again


def test_a_job_may_look_more_often_than_the_model_learned(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    learned = tuple(network.description["settings"]["model"]["passes"])
    for model, passes in (({}, learned), ({"passes": [2, 1, 1, 1, 1]}, (2, 1, 1, 1, 1))):
        asked = LearnedAtlasConfig.load({"model": model, "device": "cpu"})
        result = open_network(tmp_path / "model.pt", asked)
        assert result.passes == passes
        assert tuple(published_settings(result, asked).model.passes) == passes


def test_the_same_value_is_no_contradiction(network):
    asked = {"cohort": {"normalisation": "none"}, "model": {"int_steps": 5}}
    assert published_settings(network, LearnedAtlasConfig.load(asked)).model.int_steps == 5


def test_settings_that_dont_go_together_are_reported(make_network):
    network = make_network(training_space="affine_native", affine_native_relpath="map.nii.gz")
    with pytest.raises(ConfigurationError, match="pattern isn't used"):
        published_settings(
            network, LearnedAtlasConfig.load({"cohort": {"pattern": "{subject}.nii.gz"}})
        )


def test_channels_keep_the_tracts_that_the_dataset_named(make_cohort, make_settings):
    settings = make_settings(model={"channels": 2})
    network = build_network(make_cohort(channels=2), settings)
    result = published_settings(network, LearnedAtlasConfig.load({}))
    assert result.cohort.tracts == ["tract-0", "tract-1"]
