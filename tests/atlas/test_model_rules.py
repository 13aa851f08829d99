"""Nonsense in a model's description is refused before anything is built from it."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_records import Edit, at

from scripts.atlas.building import build_network
from scripts.atlas.published_components import subject_transforms
from scripts.atlas.published_model import published_network, published_settings
from scripts.cohort import Cohort
from scripts.errors import CheckpointError
from scripts.networks.described import DescribedNetwork
from scripts.settings.atlas import LearnedAtlasConfig

CLAIMS: dict[str, Edit] = {
    "no settings": at("settings", value=None),
    "settings of another kind": at("settings", value=["a"]),
    "an unknown setting": at("settings", "other", value=1),
    "a setting that leads out": at("settings", "output_subdir", value="../../x"),
    "a pattern that leads out": at("settings", "cohort", "pattern", value="../{subject}.nii"),
    "layers beyond memory": at("settings", "model", "enc_features", value=[60000, 60000]),
    "channels beyond memory": at("settings", "model", "channels", value=60000),
    "templates that aren't there": at("settings", "model", "n_templates", value=3),
    "parts beyond memory": at("parts", value={"unet": {"enc_features": [60000, 60000]}}),
    "parts of text": at("parts", value={"unet": {"enc_features": "abc"}}),
    "an unknown part": at("parts", value={"unet": {"other": 1}}),
    "a grid beyond memory": at("grid", "shape", value=[100_000] * 3),
    "a negative grid": at("grid", "shape", value=[-1, 12, 13]),
    "an affine of another shape": at("grid", "affine", value=[[1.0]]),
    "an affine of text": at("grid", "affine", 0, 0, value="1"),
    "an affine that is not a number": at("grid", "affine", 0, 0, value=float("nan")),
    "a box beyond the grid": at("crop", "stop", value=[99, 99, 99]),
    "an unknown normalisation": at("normalisation", value="$1"),
    "tracts as a text": at("tracts", value="abc"),
    "tracts that are numbers": at("tracts", value=[1]),
    "covariates of another kind": at("covariates", value=[{"name": "a", "kind": "code"}]),
    "a covariate without spread": at(
        "covariates", value=[{"name": "a", "kind": "number", "std": 0}]
    ),
    "maps that are numbers": at("trained_on", value=[1]),
    "another format": at("format", value=99),
    "a format that is text": at("format", value="$1"),
}


@pytest.fixture
def write(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., Path]:
    """Write a model with an edited description."""

    def written(edit: Edit = lambda about: None, **sections: Any) -> Path:
        network = build_network(make_cohort(), make_settings(**sections))
        about = copy.deepcopy(network.description)
        edit(about)
        described = DescribedNetwork(about).described
        torch.save({**network.state_dict(), "described": described}, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return written


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_refused_in_one_line(write: Callable[..., Path], claim: str) -> None:
    path = write(CLAIMS[claim])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"model\.pt") as caught:
            published_network(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 9999, '{"format": 1e400}', "\ud800"])
def test_a_description_that_is_none_is_refused(write: Callable[..., Path], text: str) -> None:
    path = write()
    state = torch.load(path, weights_only=True)
    raw = text.encode("utf-8", "surrogatepass")
    state["described"] = torch.frombuffer(bytearray(raw or b" "), dtype=torch.uint8)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        published_network(path)


def test_a_model_does_not_choose_where_a_job_writes(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = str(tmp_path / "home" / "me")
    network = published_network(write(cohort={"density_dir": elsewhere}))
    asked = LearnedAtlasConfig.load({"device": "cpu"})
    assert published_settings(network, asked).cohort.density_dir is None
    assert any(elsewhere in message for message in caplog.messages)
    own = LearnedAtlasConfig.load({"device": "cpu", "cohort": {"density_dir": "kept"}})
    assert published_settings(network, own).cohort.density_dir == "kept"


@pytest.mark.parametrize(
    "changes", [{"EnsureChannelFirstd": {"other": 1}}, {"NormaliseDensityd": {"other": "$1"}}]
)
def test_arguments_that_no_transform_takes_are_reported(
    write: Callable[..., Path], changes: dict[str, Any]
) -> None:
    network = published_network(write(at("transforms", value=changes)))
    settings = published_settings(network, LearnedAtlasConfig.load({"device": "cpu"}))
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        subject_transforms(network, settings)
