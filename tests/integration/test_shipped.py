"""An atlas without a training, and subjects registered to a map: by the network that ships."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.atlas.published_model import published_network

ALONE = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#dtype=float32",
    "--learned_atlas#cohort#margin=2",
    "--learned_atlas#model#initial=shipped",
    "--learned_atlas#optimizer#epochs=0",
    "--learned_atlas#refine#network_rounds=2",
    "--learned_atlas#refine#rounds=0",
    "--learned_atlas#refine#network_epochs=0",
)


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def report(output: Path) -> dict:
    return json.loads((output / "registered/sub-06/registration.json").read_text())


@pytest.fixture(scope="module")
def built(demo_cohort, run_bundle, tmp_path_factory) -> Path:
    """The demo's atlas by the shipped network alone."""
    folder = tmp_path_factory.mktemp("shipped")
    result = run_bundle(
        "training", "train", f"--dataset_dir={demo_cohort}", f"--output_dir={folder}/output",
        f"--ckpt_dir={folder}/models", *ALONE,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "initial network: shipped" in result.stdout + result.stderr
    return folder


def test_it_is_sharper_than_the_average_centred_and_doesnt_fold(built, demo_cohort):
    atlas = built / "output/learned_atlas"
    about = json.loads((atlas / "atlas.json").read_text())
    assert about["fields"]["folded"] == 0
    assert about["fields"]["mean_displacement_rms_voxels"] < 0.1
    assert about["fields"]["displacement_rms_voxels"] > 0.4
    assert about["training"]["epochs"] == 0
    maps = [
        values(path) / float(path.with_name("waytotal").read_text())
        for path in demo_cohort.glob("sub-*/**/fdt_paths.nii.gz")
    ]
    average, template = np.mean(maps, axis=0), values(atlas / "atlas_mean.nii.gz")
    assert template.max() > average.max()
    assert np.square(template).sum() / template.sum() > np.square(average).sum() / average.sum()


def test_a_folder_of_maps_is_enough(demo_cohort, run_verb, tmp_path):
    """`build` with nothing but a folder: it says what it guessed, and uses it."""
    for path in demo_cohort.glob("sub-*/**/fdt_paths.nii.gz"):
        name = path.relative_to(demo_cohort).parts[0]
        (tmp_path / "people").mkdir(exist_ok=True)
        (tmp_path / "people" / f"{name}.nii.gz").write_bytes(path.read_bytes())
    result = run_verb(
        "build", f"--dataset_dir={tmp_path}/people", f"--output_dir={tmp_path}/output",
        f"--ckpt_dir={tmp_path}/models", "--learned_atlas#device=cpu",
        "--learned_atlas#refine#network_rounds=1", "--learned_atlas#refine#rounds=0",
        "--learned_atlas#save_fields=false",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--learned_atlas#cohort#layout flat" in result.stdout
    assert "--learned_atlas#cohort#normalisation streamline_density" in result.stdout
    about = json.loads((tmp_path / "output/learned_atlas/atlas.json").read_text())
    assert about["normalisation"] == "streamline_density"
    offset = f"--learned_atlas#loss#log_offset {about['log_offset']}"
    assert offset in result.stdout
    assert f"--learned_atlas#presence_value {about['presence_value']}" in result.stdout


def test_the_model_says_where_its_network_is_from(built):
    network = published_network(built / "models/model.pt")
    assert network.passes == (4, 2, 2, 2, 1, 1)
    assert network.description["initial"]["name"] == "shipped"
    assert network.description["initial"]["inputs"] == "forces"


def test_it_is_published_again_from_its_model(built, demo_cohort, run_bundle, tmp_path):
    result = run_bundle(
        "exporting", "export", f"--dataset_dir={demo_cohort}", f"--ckpt_dir={built}/models",
        f"--output_dir={tmp_path}", "--learned_atlas#device=cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for name in ("mean", "std"):
        one, other = (
            values(f / f"learned_atlas/atlas_{name}.nii.gz") for f in (built / "output", tmp_path)
        )
        assert np.array_equal(one, other)


def test_again_it_gives_the_same_result_bit_for_bit(built, demo_cohort, run_bundle, tmp_path):
    result = run_bundle(
        "training", "train", f"--dataset_dir={demo_cohort}", f"--output_dir={tmp_path}/output",
        f"--ckpt_dir={tmp_path}/models", *ALONE,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    models = [torch.load(f / "models/model.pt", weights_only=True) for f in (built, tmp_path)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name])
    for name in ("mean", "std", "prob_threshold"):
        one, other = (
            values(f / f"output/learned_atlas/atlas_{name}.nii.gz") for f in (built, tmp_path)
        )
        assert np.array_equal(one, other)


def test_a_subject_is_registered_to_a_map_without_a_model(built, trained, run_bundle, tmp_path):
    """To the atlas's own map it goes as by its model; refinement brings it nearer."""
    source = (f"--dataset_dir={trained.held_out}", "--learned_atlas#device=cpu")
    template = built / "output/learned_atlas/atlas_mean.nii.gz"
    jobs = {
        "model": (f"--ckpt_dir={built}/models",),
        "map": (f"--ckpt_dir={tmp_path}/none", f"--template={template}"),
        "refined": (
            f"--ckpt_dir={tmp_path}/none", f"--template={template}",
            "--learned_atlas#refine#new_subject_iterations=10",
        ),
    }  # fmt: skip
    found = {}
    for name, words in jobs.items():
        output = tmp_path / name
        result = run_bundle("registering", "inference", *source, *words, f"--output_dir={output}")
        assert result.returncode == 0, result.stderr
        found[name] = report(output)
    after = {name: one["log_density_correlation"]["after"] for name, one in found.items()}
    before = found["map"]["log_density_correlation"]["before"]
    assert after["map"] > before + 0.05
    assert after["map"] == pytest.approx(after["model"], abs=0.03)
    assert found["refined"]["loss"]["after"]["loss"] < found["map"]["loss"]["after"]["loss"]
    for one in found.values():
        assert min(s["corner_min"] for s in one["jacobian"].values()) > 0
    # The map is the atlas's, so its other maps go to the subject as well.
    result = run_bundle(
        "carrying", "atlas_to_patient", f"--atlas_dir={template.parent}",
        f"--output_dir={tmp_path}/map", "--atlas_to_patient#patients=['sub-06']",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    carried = tmp_path / "map/sub-06/atlas_in_patient_space/atlas_mean.nii.gz"
    registered = tmp_path / "map/registered/sub-06/atlas_in_patient_space/atlas_mean.nii.gz"
    np.testing.assert_allclose(values(carried), values(registered), atol=1e-5)


def test_a_foreign_map_on_another_scale_is_a_template_as_well(trained, run_bundle, tmp_path):
    """A subject's raw counts, to which another is registered."""
    path = next((trained.dataset_dir / "sub-01").rglob("fdt_paths.nii.gz"))
    result = run_bundle(
        "registering", "inference", f"--dataset_dir={trained.held_out}", f"--template={path}",
        f"--ckpt_dir={tmp_path}/none", f"--output_dir={tmp_path}", "--learned_atlas#device=cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    correlation = report(tmp_path)["log_density_correlation"]
    assert correlation["after"] > correlation["before"] + 0.1
    assert report(tmp_path)["normalisation"] == "max"


def test_a_template_that_cant_be_read_is_one_message(trained, run_bundle, refused, tmp_path):
    result = run_bundle(
        "registering", "inference", f"--dataset_dir={trained.held_out}",
        f"--template={tmp_path}/none.nii.gz", f"--output_dir={tmp_path}/output",
        "--learned_atlas#device=cpu",
    )  # fmt: skip
    refused(result, 3, "none.nii.gz")
    assert not (tmp_path / "output/registered").exists()
