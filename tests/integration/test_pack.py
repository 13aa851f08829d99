"""`python -m bundle pack`: the archive of a published model, unpacked and used elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from warm_process import run_code, run_module

from bundle.packing import completed_metadata, trained_config
from bundle.packing import pack as write_pack
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_geometry, published_network
from scripts.errors import StorageError
from scripts.runtime.ownership import NAME

ROOT = Path(__file__).resolve().parents[2]
# What the zoo's schema of 2024-07-25 asks of every bundle, and of each tensor.
REQUIRED = {
    "schema": str, "version": str, "changelog": dict, "monai_version": str,
    "pytorch_version": str, "numpy_version": str, "required_packages_version": dict,
    "name": str, "task": str, "description": str, "authors": str, "copyright": str,
    "network_data_format": dict,
}  # fmt: skip
TENSOR = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str,
    "value_range": list, "is_patch_data": bool, "channel_def": dict,
}  # fmt: skip


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    kind, program, *arguments = map(str, words)
    return {"-m": run_module, "-c": run_code}[kind](program, arguments, cwd, environment)


def pack(*words: object) -> subprocess.CompletedProcess[str]:
    return run("-m", "bundle", "pack", *words, cwd=ROOT)


@pytest.fixture(scope="module")
def archive(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "atlas.zip"
    result = pack("--ckpt_dir", trained.ckpt_dir, "--output", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(path)
    return path


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory) -> Path:
    """The archive's root, far from the repository."""
    folder = tmp_path_factory.mktemp("zoo")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    (root,) = folder.iterdir()
    return root


def test_it_holds_the_bundle_and_nothing_else(unpacked, trained):
    assert unpacked.name == NAME
    assert {path.name for path in unpacked.iterdir()} == {
        "LICENSE", "bundle", "configs", "docs", "models", "scripts",
    }  # fmt: skip
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    ours = {
        path.relative_to(ROOT).as_posix()
        for folder in ("bundle/weights", "scripts", "configs", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == {*ours, "LICENSE", "docs/model_card.md", "models/model.pt"}
    own = {"configs/metadata.json", "configs/train.yaml", "docs/model_card.md", "models/model.pt"}
    for name in files - own:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    model = trained.ckpt_dir / "model.pt"
    assert (unpacked / "models/model.pt").read_bytes() == model.read_bytes()


def test_links_of_its_docs_lead_somewhere(unpacked):
    for page in (unpacked / "docs").glob("*.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_its_bytes_follow_from_its_files(archive, trained, tmp_path):
    os.utime(trained.ckpt_dir / "model.pt")
    again = tmp_path / "again.zip"
    assert pack("--ckpt_dir", trained.ckpt_dir, "--output", again).returncode == 0
    assert again.read_bytes() == archive.read_bytes()


def test_its_metadata_are_those_of_the_model(unpacked):
    metadata = json.loads((unpacked / "configs/metadata.json").read_text())
    for name, kind in REQUIRED.items():
        assert isinstance(metadata[name], kind), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert metadata["version"] in metadata["changelog"]
    assert metadata["name"] == NAME
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    for tensor in (image, pred):
        for name, kind in TENSOR.items():
            assert isinstance(tensor[name], kind), name
    network = published_network(unpacked / "models/model.pt")
    grid, crop = published_geometry(network)
    assert tuple(image["spatial_shape"]) == tuple(pred["spatial_shape"]) == crop.shape
    assert crop.shape != grid.shape
    assert image["channel_def"] == {"0": "tract"}
    assert pred["channel_def"] == {"0": "background", "1": "tract"}
    largest = float(network.template_density().max())
    assert largest <= pred["value_range"][1] <= 1.2 * largest


def test_pins_are_those_that_the_bundle_is_tested_with(unpacked):
    metadata = json.loads((unpacked / "configs/metadata.json").read_text())
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M))
    for name, pin in metadata["required_packages_version"].items():
        assert pins[name] == pin
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["numpy_version"] == pins["numpy"]


def test_monai_verifies_the_network(unpacked):
    """MONAI's own check of the network against the metadata."""
    words = (
        "verify_net_in_out", "network_def", "--meta_file", "configs/metadata.json",
        "--config_file", "configs/inference.yaml", "--device", "cpu",
    )  # fmt: skip
    result = run("-m", "monai.bundle", *words, cwd=unpacked)
    assert result.returncode == 0, result.stderr
    assert "verified with no error" in result.stdout + result.stderr
    wrong = run(
        "-m", "monai.bundle", *words,
        "--_meta_#network_data_format#outputs#pred#num_channels", 2, cwd=unpacked,
    )  # fmt: skip
    assert wrong.returncode != 0


def test_it_trains_as_its_model_was_trained(unpacked):
    """Annotation tools pass on no settings."""
    packed, ours = (
        yaml.safe_load((root / "configs/train.yaml").read_text()) for root in (unpacked, ROOT)
    )
    block, own = packed.pop("learned_atlas"), ours.pop("learned_atlas")
    assert packed == ours
    assert block.pop("device") == own["device"]
    trained = published_network(unpacked / "models/model.pt").description["settings"]
    assert {**block, "device": trained["device"]} == trained
    assert block["model"]["enc_features"] == [8, 8, 8] != own["model"]["enc_features"]


def test_a_configuration_without_settings_is_not_completed():
    with pytest.raises(ValueError, match="no block learned_atlas"):
        trained_config("device: cpu\n", {})


def test_monai_finds_every_property_of_inference(unpacked, trained):
    workflow = ConfigWorkflow(
        config_file=str(unpacked / "configs/inference.yaml"),
        meta_file=str(unpacked / "configs/metadata.json"),
        logging_file=str(unpacked / "configs/logging.conf"),
        workflow_type="inference",
        bundle_root=str(unpacked),
        dataset_dir=str(trained.held_out),
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_it_registers_a_new_subject_elsewhere(unpacked, trained, tmp_path):
    result = run(
        "-m", "monai.bundle", "run", "registering", "--config_file", "configs/inference.yaml",
        f"--dataset_dir={trained.held_out}", f"--output_dir={tmp_path}",
        "--learned_atlas#device=cpu", cwd=unpacked,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "registered/sub-06/registration.json").read_text())
    described = json.loads((trained.atlas / "atlas.json").read_text())
    assert report["weights"] == described["weights"]
    found = run("-c", "import scripts; print(scripts.__file__)", cwd=unpacked)
    assert Path(found.stdout.strip()).is_relative_to(unpacked)  # no other code could have run


def test_it_says_what_the_model_was_trained_on(trained, tmp_path):
    output = tmp_path / "atlas.zip"
    words = ("--ckpt_dir", trained.ckpt_dir, "--output", output, "--data_source", "our hospital")
    assert pack(*words).returncode == 0
    with zipfile.ZipFile(output) as packed:
        metadata = json.loads(packed.read(f"{NAME}/configs/metadata.json"))
    assert metadata["data_source"] == "our hospital"


def test_channels_are_named_after_their_tracts():
    metadata = json.loads((ROOT / "configs/metadata.json").read_text())
    description = {"normalisation": "none", "tracts": ["cst_left", "af_left"]}
    template = torch.rand(1, 2, 9, 7)
    network = AtlasNetwork(template, enc_features=(4,), dec_features=(4,), description=description)
    tensors = completed_metadata(metadata, network)["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert image["channel_def"] == {"0": "cst_left", "1": "af_left"}
    assert pred["channel_def"] == {"0": "background", "1": "cst_left", "2": "af_left"}
    assert image["num_channels"] == pred["num_channels"] == 2
    assert pred["spatial_shape"] == [9, 7]
    assert float(template.max()) <= image["value_range"][1] <= 1.2 * float(template.max())


def test_without_a_model_nothing_is_written(tmp_path, refused):
    output = tmp_path / "atlas.zip"
    refused(pack("--ckpt_dir", tmp_path, "--output", output), 6, "model.pt: no such model")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_model_is_refused(tmp_path, refused):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    output = tmp_path / "atlas.zip"
    refused(pack("--ckpt_dir", tmp_path, "--output", output), 6, "contains no atlas model")
    assert not output.exists()


@pytest.mark.parametrize("what", ["text", "another archive"])
def test_a_file_of_others_is_not_replaced(trained, tmp_path, what):
    output = tmp_path / "a.zip"
    if what == "text":
        output.write_text("mine")
    else:
        with zipfile.ZipFile(output, "w") as archive:
            archive.writestr("thesis.txt", "mine")
    before = output.read_bytes()
    with pytest.raises(StorageError, match=r"a\.zip: would be replaced"):
        write_pack(ROOT, trained.ckpt_dir, output)
    assert output.read_bytes() == before


def test_an_archive_that_cannot_be_written(trained, tmp_path, refused):
    blocked = tmp_path / "file"
    shutil.copy(ROOT / "LICENSE", blocked)
    result = pack("--ckpt_dir", trained.ckpt_dir, "--output", blocked / "atlas.zip")
    refused(result, 7, "can't be written")
