"""A packed model reveals nothing about people or the machine, and its settings are not code."""

from __future__ import annotations

import copy
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from bundle import cli
from bundle.packing import pack, packed
from bundle.sharing import model_card, shared_description
from scripts.atlas.building import build_network
from scripts.atlas.published_model import published_network
from scripts.errors import CheckpointError, CohortError
from scripts.networks.described import DescribedNetwork, weights_identity
from scripts.runtime.ownership import NAME
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]
SIGNS = ["$__import__('os').mkdir('PWNED')", "@x", "%x", "@learned_atlas", "a#b", "$"]
SECRETS = {
    "exclude": ["sub-SECRET1", "sub-SECRET2"],
    "subjects": ["sub-SECRET3"],
    "density_dir": "/home/SECRET4/maps",
    "reference": "/home/SECRET5/t1.nii.gz",
    "participants": "SECRET6/participants.tsv",
}


@pytest.fixture
def model(
    make_cohort: Callable[..., Any],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., Path]:
    """Write a model; sections given are laid over its settings, ``changes`` over what it says."""

    def write(changes: Callable[[dict[str, Any]], Any] | None = None, **sections: Any) -> Path:
        network = build_network(make_cohort(), make_settings(**sections))
        state = dict(network.state_dict())
        if changes is not None:
            description = copy.deepcopy(network.description)
            changes(description)
            state["described"] = DescribedNetwork(description).described
        (tmp_path / "models").mkdir(exist_ok=True)
        torch.save(state, tmp_path / "models" / "model.pt")
        return tmp_path / "models"

    return write


def test_people_and_places_stay_at_home(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model(lambda about: about.update(overrides={"x": "/home/SECRET7"}), cohort=SECRETS)
    archive = packed(ROOT, folder)
    for name, data in archive.contents.items():
        assert b"SECRET" not in data, name
    assert len(archive.left_out) == len(SECRETS) + 1
    assert any("exclude (2 names)" in what for what in archive.left_out)
    assert not any("SECRET" in what for what in archive.left_out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.pt").write_bytes(archive.contents["models/model.pt"])
    ours, theirs = (published_network(place / "model.pt") for place in (folder, tmp_path / "new"))
    assert weights_identity(ours) == weights_identity(theirs)
    assert theirs.description["settings"]["cohort"]["exclude"] == []
    block = yaml.safe_load(archive.contents["configs/train.yaml"])["learned_atlas"]
    assert LearnedAtlasConfig.load({**block, "device": "cpu"}).cohort.density_dir is None
    assert packed(ROOT, folder).contents == archive.contents


def test_a_model_with_nothing_to_hide_travels_as_it_is(model: Callable[..., Path]) -> None:
    folder = model()
    archive = packed(ROOT, folder)
    assert archive.contents["models/model.pt"] == (folder / "model.pt").read_bytes()
    assert archive.left_out == ()
    assert b"Nothing had to be left out." in archive.contents["docs/model_card.md"]


@pytest.mark.parametrize("text", SIGNS)
@pytest.mark.parametrize(
    "place",
    [("settings", "output_subdir"), ("settings", "cohort", "pattern"),
     ("settings", "affine_native_relpath"), ("settings", "model", "covariates"),
     ("settings", "cohort", "tracts"), ("tracts",)],
)  # fmt: skip
def test_settings_that_would_be_code_are_not_packed(
    model: Callable[..., Path], tmp_path: Path, place: tuple[str, ...], text: str
) -> None:
    def change(about: dict[str, Any]) -> None:
        *above, last = place
        section: Any = about
        for key in above:
            section = section[key]
        value = f"{text}{{subject}}" if last == "pattern" else text
        section[last] = [value] if last in ("tracts", "covariates") else value

    folder = model(change)
    output = tmp_path / "atlas.zip"
    with pytest.raises(CheckpointError) as caught:
        pack(ROOT, folder, output)
    assert len(str(caught.value).splitlines()) == 1
    assert not output.exists()


@pytest.mark.parametrize(
    "text", ["{}", "a\nb: $1", "'", '"', "- x", "&a", "*a", "!!x", "a: b", "~"]
)
def test_other_odd_texts_come_back_as_they_are(model: Callable[..., Path], text: str) -> None:
    folder = model(lambda about: about.update(tracts=[text]))
    archive = packed(ROOT, folder)
    metadata = json.loads(archive.contents["configs/metadata.json"])
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": text}
    parser = ConfigParser(yaml.safe_load(archive.contents["configs/train.yaml"]))
    block = parser.get_parsed_content("learned_atlas")
    assert block["cohort"]["normalisation"] == "none"


def test_an_archive_with_a_source_that_would_be_code_is_refused(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pack", "--ckpt_dir", model(), "--output", tmp_path / "a.zip", "--data_source", "$1")
    assert cli.main([*map(str, words)]) == 6
    assert "would be more than text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda about: about["settings"].update(unknown=1), "unknown key"),
        (lambda about: about["settings"]["model"].update(channels="x"), "must be an integer"),
        (lambda about: about.update(parts={"unet": {"act": "/home/x"}}), "'act'"),
        (lambda about: about.update(not_carried=["see /home/me/x.py"]), "names a place"),
        (lambda about: about.update(loss={"window": "~/x"}), "names a place"),
    ],
)
def test_what_can_neither_be_packed_nor_left_out_is_refused(
    model: Callable[..., Path], change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    with pytest.raises(CheckpointError, match=why):
        packed(ROOT, model(change))


def test_what_travels_is_listed_and_nothing_written(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(cohort={"exclude": ["sub-SECRET"]})
    before = sorted(tmp_path.rglob("*"))
    words = ("pack", "--list", "--ckpt_dir", folder, "--output", tmp_path / "a.zip")
    assert cli.main([*map(str, words)]) == 0
    output = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "models/model.pt" in output and "docs/model_card.md" in output
    assert "left out of models/model.pt: learned_atlas.cohort.exclude (1 names)" in output
    assert "SECRET" not in output
    sizes = pack(ROOT, folder, tmp_path / "a.zip")
    assert all(f"{size:,}  {name}" in output for name, size in sizes.items())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"{NAME}/{name}" for name in sizes]


def test_a_card_says_what_the_model_reveals_of_people(make_network: Callable[..., Any]) -> None:
    network = make_network()
    description = copy.deepcopy(network.description)
    description["covariates"] = [
        {"name": "age|<b>", "kind": "number", "mean": 30.0, "std": 5.0, "low": 21.0, "high": 44.0},
        {"name": "sex", "kind": "category", "categories": ["F", "M"], "shares": [0.5, 0.5]},
    ]
    page = model_card(network, shared_description("model.pt", description), "a | study")
    assert "age\\|\\<b\\>: mean 30" in page
    assert "from 21 to 44" in page and "sex: F 50%, M 50%" in page
    assert "a \\| study" in page
    assert weights_identity(network) in page


def test_a_link_in_the_bundle_that_leads_out_is_not_packed(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for name in ("configs", "docs", "scripts"):
        (root / name).mkdir(parents=True)
    for name in ("LICENSE", "configs/metadata.json", "configs/train.yaml"):
        shutil.copy(ROOT / name, root / name)
    (tmp_path / "id_rsa").write_text("secret")
    (root / "docs" / "x.md").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(CohortError, match=r"x\.md.*a link that leads out"):
        packed(root, model())


def test_the_archive_is_a_model_that_others_read(model: Callable[..., Path]) -> None:
    data = packed(ROOT, model(cohort=SECRETS)).contents["models/model.pt"]
    result = torch.load(io.BytesIO(data), weights_only=True)
    assert isinstance(result, dict) and "described" in result
