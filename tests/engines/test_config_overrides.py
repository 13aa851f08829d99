"""Parts of train.yaml that are overridden in MONAI's way, and where that is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.transforms import LoadImaged

from scripts.atlas.building import build_network
from scripts.atlas.components import atlas_loss, cohort_transforms
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_components import as_trained, subject_transforms
from scripts.atlas.published_model import carried_transforms, published_network
from scripts.cohort import Cohort
from scripts.engines.config_overrides import config_overrides, differences
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Any]


@pytest.fixture
def parser(make_cohort: Make, make_settings: Make) -> Callable[..., ConfigParser]:
    """train.yaml with overrides, of a cohort and settings that are ready."""

    def make(settings: LearnedAtlasConfig | None = None, **overrides: Any) -> ConfigParser:
        result = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs/train.yaml")))
        ready = make_settings() if settings is None else settings
        result.update({"cohort": make_cohort(), "settings": ready, "device": "cpu"})
        result.update({"train#dataset": {
            "_target_": "Dataset", "data": "$@cohort.datalist()",
            "transform": "@train#preprocessing",
        }})  # fmt: skip
        result.update(overrides)
        return result

    return make


def rebuilt(network: AtlasNetwork, folder: Path) -> AtlasNetwork:
    torch.save(network.state_dict(), folder / "model.pt")
    return published_network(folder / "model.pt")


def test_the_shipped_parts_are_those_of_the_settings(
    parser: Make, make_cohort: Make, make_settings: Make
) -> None:
    config = parser()
    cohort, settings = config.get_parsed_content("cohort"), make_settings()
    assert config.get_parsed_content("overrides") == {}
    network = config.get_parsed_content("network_def")
    alone = build_network(cohort, settings)
    assert network.description == alone.description
    for name, value in alone.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert config.get_parsed_content("loss").arguments == (
        atlas_loss(cohort.grid.spacing, settings).arguments
    )
    mine = config.get_parsed_content("train#preprocessing").transforms
    theirs = cohort_transforms(cohort, settings).transforms
    assert [type(one) for one in mine] == [type(one) for one in theirs]
    item = cohort.datalist()[0]
    assert torch.equal(
        config.get_parsed_content("train#dataset")[0]["image"],
        cohort_transforms(cohort, settings)(item)["image"],
    )


def test_overrides_reach_the_parts_and_are_recorded(parser: Make, tmp_path: Path) -> None:
    given = {
        "network_def#unet#enc_features": [6, 6],
        "network_def#integration#padding_mode": "zeros",
        "network_def#warp#padding_mode": "border",
        "loss#similarity#window": 9,
        "optimizer#lr": 0.5,
        "train#trainer#max_epochs": 3,
        "train#preprocessing#transforms#0#dtype": "float64",
    }
    config = parser(**given)
    assert config.get_parsed_content("overrides") == given
    network = config.get_parsed_content("network_def")
    assert network.unet.encoder[0][0].out_channels == 6
    assert config.get_parsed_content("loss").similarity.window == 9
    assert config.get_parsed_content("optimizer").param_groups[0]["lr"] == 0.5
    assert network.description["overrides"] == given

    # The model alone is enough for a later job.
    again = rebuilt(network, tmp_path)
    assert again.unet.arguments == network.unet.arguments
    assert again.integration.arguments["padding_mode"] == "zeros"
    assert again.warp.arguments["padding_mode"] == "border"
    image = torch.rand(1, 1, *network.shape)
    with torch.no_grad():
        assert torch.equal(again.eval()(image), network.eval()(image))
    settings = config.get_parsed_content("settings")
    assert atlas_loss([2.0] * 3, settings, again).similarity.window == 9
    first = subject_transforms(again, settings).transforms[0]
    assert first._loader.dtype == "float64"


def test_expressions_are_recorded_as_text_and_evaluated_once(parser: Make, tmp_path: Path) -> None:
    marker = tmp_path / "evaluated"
    text = f"$[2, open({str(marker)!r}, 'a').write('x') + 1]"
    config = parser(**{"loss#scales": text})
    network = config.get_parsed_content("network_def")
    assert network.description["overrides"] == {"loss#scales": text}
    assert network.description["loss"] == {"scales": [2, 2]}
    rebuilt(network, tmp_path)
    assert marker.read_text() == "x"


def test_settings_are_no_overrides(parser: Make, make_settings: Make) -> None:
    config = parser(make_settings(loss={"window": 3}, optimizer={"lr": 0.1}))
    assert config.get_parsed_content("overrides") == {}
    assert config.get_parsed_content("loss").similarity.window == 3


def test_multi_gpu_wrapping_is_no_override(parser: Make) -> None:
    assert parser(**{"train#trainer#network": "x"}).get_parsed_content("overrides") == {}


@pytest.mark.parametrize(
    ("id", "value", "message"),
    [
        ("network_def#unet#factor", 1, "network_def#unet#factor = 1: must be 2"),
        ("network_def#warp", {"_target_": "torch.nn.Identity"}, "network_def#warp is a Identity"),
        ("train#preprocessing#transforms#4#log_offset", 0.5, "log_offset = 0.5: must be 0.001"),
    ],
)
def test_what_would_not_fit_together_is_refused(
    parser: Make, id: str, value: Any, message: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        parser(**{id: value}).get_parsed_content("network_def")
    assert isinstance(caught.value.__cause__, ConfigurationError)
    assert message in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("value", "original", "found"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 2, "b": 1}, {"a": 1}, {"x#a": 2, "x#b": 1}),
        ({}, {"a": 1}, {"x#a": None}),
        ([1, {"a": 2}], [1, {"a": 1}], {"x#1#a": 2}),
        ([1], [1, 2], {"x": [1]}),
        ({"_target_": "A"}, {"_target_": "B", "c": 1}, {"x": {"_target_": "A"}}),
        ("$@a::b", "$@a#b", {}),
        (True, False, {"x": True}),
    ],
)
def test_differences(value: Any, original: Any, found: dict[str, Any]) -> None:
    assert differences(value, original, "x") == found


def test_it_needs_a_configuration() -> None:
    with pytest.raises(ConfigurationError, match="must be named in a MONAI configuration"):
        config_overrides("train", ["loss"])


def test_only_plain_arguments_of_transforms_are_carried() -> None:
    place = "train#preprocessing#transforms#0"
    carried, left = carried_transforms(
        {
            f"{place}#dtype": "float64",
            f"{place}#reader": "os.system",
            f"{place}#image_only": "$1",
            f"{place}#_mode_": "callable",
            "train#preprocessing#transforms": [],
            "loss#window": 3,
        },
        [LoadImaged("image")],
    )
    assert carried == {"LoadImaged": {"dtype": "float64"}}
    assert [id.split("#")[-1] for id in left] == ["reader", "image_only", "_mode_", "transforms"]


def test_a_model_cannot_name_a_reader(make_cohort: Make, make_settings: Make) -> None:
    network = build_network(make_cohort(), make_settings())
    description = {**network.description, "transforms": {"LoadImaged": {"reader": "os.system"}}}
    text = json.dumps(description).encode()
    network.described = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    made = as_trained(network, [lambda **given: given])
    assert list(made.transforms) == [{}]
    subject_transforms(network, make_settings())  # would fail on such a reader


def test_what_a_model_cannot_bring_is_reported(
    parser: Make, caplog: pytest.LogCaptureFixture
) -> None:
    id = "train#preprocessing#transforms#1"
    config = parser(**{id: {"_target_": "EnsureChannelFirstd", "keys": "$['image']"}})
    network = config.get_parsed_content("network_def")
    assert f"{id}#keys" in network.description["not_carried"]
    subject_transforms(network, config.get_parsed_content("settings"))
    assert f"the model was trained with another {id}#keys" in caplog.text


def test_an_unfinished_run_keeps_its_overrides(
    make_cohort: Make, make_settings: Make, tmp_path: Path
) -> None:
    cohort: Cohort = make_cohort()
    settings = make_settings()
    RunState(tmp_path / "run", settings, cohort, overrides={"optimizer#lr": 1.0})
    (tmp_path / "run" / "training.pt").touch()  # a run that saved nothing gives way
    RunState(tmp_path / "run", settings, cohort, overrides={"optimizer#lr": 1.0})
    with pytest.raises(CheckpointError, match=r"optimizer#lr was 1\.0, now None"):
        RunState(tmp_path / "run", settings, cohort)
    with pytest.raises(CheckpointError, match=r"optimizer#lr was 1\.0, now 2\.0"):
        RunState(tmp_path / "run", settings, cohort, overrides={"optimizer#lr": 2.0})


def test_inference_lists_the_transforms_that_python_makes(
    make_cohort: Make, make_settings: Make
) -> None:
    network = build_network(make_cohort(), make_settings())
    result = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs/inference.yaml")))
    settings = make_settings()
    result.update({"network_def": network, "settings": settings})
    mine = result.get_parsed_content("preprocessing").transforms
    theirs = subject_transforms(network, settings).transforms
    assert [type(one) for one in mine] == [type(one) for one in theirs]
    item = {"image": make_cohort().datalist()[0]["image"]}
    pair = [Dataset([item], one)[0]["image"] for one in (
        result.get_parsed_content("preprocessing"), subject_transforms(network, settings)
    )]  # fmt: skip
    assert torch.equal(*pair)
