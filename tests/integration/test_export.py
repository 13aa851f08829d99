"""`exporting`: the atlas once more, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def published(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def state_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def weights_alone(trained, tmp_path) -> Path:
    """A checkpoint folder as somebody else gets it: without the run that made it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(trained.ckpt_dir / "model.pt", folder)
    return folder


def test_repeats_the_training_to_the_bit_and_leaves_the_checkpoints_alone(
    trained, run_bundle, tmp_path
):
    before = state_of(trained.ckpt_dir)
    result = run_bundle(
        "exporting",
        "export",
        *(f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}"),
        *("--output_dir=again", "--learned_atlas#device=cpu"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    first, second = published(trained.atlas), published(tmp_path / "again" / "learned_atlas")
    described = [json.loads(files.pop("atlas.json")) for files in (first, second)]
    # They tell when they were made.
    assert all(files.pop("quality.html", None) for files in (first, second))
    assert len(first) >= len(MAPS) + 2 * 5 + 1  # maps, fields, jacobian.json
    assert first == second
    for description in described:
        del description["created"], description["description_sha256"]
        del description["files"]["quality.html"]
    # The model names the passes that null stood for in the training.
    passes = [description["settings"]["model"].pop("passes") for description in described]
    assert passes == [None, [2, 1, 1]]
    assert described[0] == described[1]
    assert described[1]["training"]["epochs"] == 2
    assert state_of(trained.ckpt_dir) == before


def test_without_its_run_the_network_finds_the_fields(trained, run_bundle, weights_alone, tmp_path):
    words = [f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={weights_alone}"]
    words += ["--learned_atlas#device=cpu", "--learned_atlas#refine#lr=0.2"]
    alone = run_bundle("exporting", "export", *words, f"--output_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert "fields are estimated by the network" in alone.stdout
    words += ["--learned_atlas#refine#new_subject_iterations=4"]
    refined = run_bundle("exporting", "export", *words, f"--output_dir={tmp_path / 'refined'}")
    assert refined.returncode == 0, refined.stderr
    assert "refined in 4 iterations" in refined.stdout
    assert sorted(path.name for path in weights_alone.iterdir()) == ["model.pt"]

    spread = {}
    for name, atlas in {
        "trained": trained.atlas,
        "alone": tmp_path / "alone" / "learned_atlas",
        "refined": tmp_path / "refined" / "learned_atlas",
    }.items():
        same = values(atlas / "atlas_mean.nii.gz") == values(trained.atlas / "atlas_mean.nii.gz")
        assert same.all()  # the template is the model's
        assert len(list((atlas / "fields").glob("*.nii.gz"))) == 10
        spread[name] = float(values(atlas / "atlas_std.nii.gz").astype(np.float64).sum())
    # The better the subjects lie on each other, the less they differ voxel by voxel.
    assert spread["refined"] < 0.97 * spread["alone"]
    assert spread["trained"] != spread["alone"]
    report = json.loads((tmp_path / "alone" / "learned_atlas" / "atlas.json").read_text())
    assert report["training"] is None


def test_another_cohort_is_reported_and_emitted_in_the_models_box(trained, run_bundle, tmp_path):
    result = run_bundle(
        "exporting",
        "export",
        *(f"--dataset_dir={trained.held_out}", f"--ckpt_dir={trained.ckpt_dir}"),
        *(f"--output_dir={tmp_path}", "--learned_atlas#device=cpu"),
        *("--learned_atlas#min_subjects=1", "--learned_atlas#output_subdir=other"),
        *("--learned_atlas#emit_baseline_maps=['mean','std']", "--learned_atlas#save_fields=false"),
    )
    assert result.returncode == 0, result.stderr
    assert "trained on another cohort" in result.stdout
    folder = tmp_path / "other"
    found = {path for path in published(folder) if path.endswith(".nii.gz")}
    assert found == {"atlas_mean.nii.gz", "atlas_std.nii.gz"}
    assert (
        values(folder / "atlas_mean.nii.gz") == values(trained.atlas / "atlas_mean.nii.gz")
    ).all()
    assert (values(folder / "atlas_std.nii.gz") == 0).all()  # of one subject
    report = json.loads((folder / "atlas.json").read_text())
    trained_report = json.loads((trained.atlas / "atlas.json").read_text())
    assert [one["subject"] for one in report["cohort"]["subjects"]] == ["sub-06"]
    assert report["cohort"]["crop"] == trained_report["cohort"]["crop"]
    assert report["weights"] == trained_report["weights"]


def shift_a_cohort(source: Path, target: Path) -> Path:
    """The cohort half a voxel further along the first axis."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".truth"))
    for path in target.rglob("*.nii.gz"):
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 2.5
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    return target


@pytest.mark.parametrize(
    ("case", "code", "messages"),
    [
        ("no model", 6, ["model.pt: no such model", "--ckpt_dir"]),
        ("no checkpoint", 6, ["model.pt: not a checkpoint that can be loaded"]),
        ("foreign model", 6, ["model.pt: contains no atlas model of this bundle"]),
        ("other grid", 3, ["is not on the grid of the model", "shifted by (2.5, 0, 0) mm"]),
        ("empty dataset", 3, ["no subject found"]),
        ("unknown subject", 3, ["0 usable subjects", "sub-99"]),
        (
            "other model",
            6,
            [
                "learned_atlas.cohort.normalisation = 'max': the model was trained with 'waytotal'",
                "learned_atlas.model.channels = 2: the model was trained with 1",
            ],
        ),
        ("no device", 2, ["learned_atlas.device", "cuda:99"]),
    ],
)
def test_what_cant_be_exported_is_one_message_and_no_file(
    case, code, messages, trained, run_bundle, refused, tmp_path
):
    folders = {"dataset_dir": trained.dataset_dir, "ckpt_dir": trained.ckpt_dir}
    words = ["--learned_atlas#device=cpu"]
    other = tmp_path / "other"
    other.mkdir()
    if case in ("no model", "no checkpoint", "foreign model"):
        folders["ckpt_dir"] = other
        if case == "no checkpoint":
            (other / "model.pt").write_text("weights")
        if case == "foreign model":
            torch.save(torch.nn.Linear(2, 2).state_dict(), other / "model.pt")
    elif case == "other grid":
        folders["dataset_dir"] = shift_a_cohort(trained.dataset_dir, other / "cohort")
    elif case == "empty dataset":
        folders["dataset_dir"] = other
    elif case == "unknown subject":
        words.append("--learned_atlas#cohort#subjects=['sub-99']")
    elif case == "other model":
        words += ["--learned_atlas#cohort#normalisation=max", "--learned_atlas#model#channels=2"]
    else:
        words = ["--learned_atlas#device=cuda:99"]
    words += [f"--{key}={folder}" for key, folder in folders.items()]
    output = tmp_path / "output"
    result = run_bundle("exporting", "export", *words, f"--output_dir={output}")
    refused(result, code, *messages)
    assert not output.exists()


def test_the_settings_travel_with_the_model(trained, run_bundle, tmp_path):
    """Without settings a job uses those of the training; its settings replace them."""
    description = json.loads((trained.atlas / "atlas.json").read_text())["settings"]
    result = run_bundle(
        "exporting",
        "export",
        *(f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}"),
        *(f"--output_dir={tmp_path}", "--learned_atlas#device=cpu"),
        *("--learned_atlas#presence_value=0.02", "--learned_atlas#cohort#margin=5"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "learned_atlas" / "atlas.json").read_text())
    description["model"]["passes"] = [2, 1, 1]  # named by the model; null in the training
    description["presence_value"] = 0.02
    description["cohort"]["margin"] = 5
    assert report["settings"] == description
    for name in ("mean", "std"):  # another margin gives the same box
        first, second = (
            values(folder / f"atlas_{name}.nii.gz")
            for folder in (trained.atlas, tmp_path / "learned_atlas")
        )
        assert (first == second).all()
    first, second = (
        values(folder / "atlas_prob_threshold.nii.gz")
        for folder in (trained.atlas, tmp_path / "learned_atlas")
    )
    assert second.sum() < first.sum()
