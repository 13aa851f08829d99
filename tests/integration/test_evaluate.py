"""`evaluating` and `cross_validating`: subjects that were not in the training."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from warm_process import run_module

from scripts.metrics import dice, log_density_correlation
from scripts.runtime.ownership import MARK

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def test_measures_agree_with_what_registering_writes(trained, run_bundle, tmp_path):
    folders = (f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={tmp_path}")
    words = (*folders, f"--dataset_dir={trained.held_out}", "--learned_atlas#device=cpu",
             "--learned_atlas#refine#new_subject_iterations=2")  # fmt: skip
    result = run_bundle("evaluating", "evaluate", *words, f"--training_dir={trained.dataset_dir}")
    assert result.returncode == 0, result.stderr
    assert "sub-06" in result.stdout and "mean" in result.stdout
    other = run_bundle("registering", "inference", *words)
    assert other.returncode == 0, other.stderr

    folder = tmp_path / "evaluation"
    names = {path.name for path in folder.iterdir()}
    assert names == {"evaluation.csv", "evaluation.json", MARK}
    about = json.loads((folder / "evaluation.json").read_text())
    (row,) = about["subjects"]
    registered = json.loads((tmp_path / "registered/sub-06/registration.json").read_text())
    for name, key in (
        ("correlation", "log_density_correlation"),
        ("presence_dice", "presence_dice"),
    ):
        assert row[name] == pytest.approx(registered[key]["after"], abs=1e-5)
        assert row[f"{name}_unregistered"] == pytest.approx(registered[key]["before"], abs=1e-5)
    assert row["smallest_jacobian"] == pytest.approx(
        min(min(f["min"], f["corner_min"]) for f in registered["jacobian"].values())
    )
    assert row["folded_share"] == 0
    assert 0 <= row["inverse_consistency_voxels"] < 0.1
    assert about["refinement_iterations"] == 2

    # The plain average of the training cohort, by hand.
    maps = [
        values(subject / RUN / "fdt_paths.nii.gz") / float((subject / RUN / "waytotal").read_text())
        for subject in (
            *sorted(trained.dataset_dir.glob("sub-*")), trained.held_out / "sub-06",
        )
    ]  # fmt: skip
    average, own = np.mean(maps[:-1], axis=0), maps[-1]
    offset, level = about["log_offset"], about["presence_value"]
    assert row["correlation_average"] == pytest.approx(
        log_density_correlation(average, own, offset, own > 0), abs=0.02
    )  # the box cuts a little of the subject off
    assert row["presence_dice_average"] == pytest.approx(
        dice(average > level, own > level), abs=0.02
    )
    (template,) = about["templates"]
    assert 0 < template["efc"] < 1 and 0 < template["efc_average"] < 1
    assert template["mean_displacement_rms_voxels"] == pytest.approx(
        row["displacement_rms_voxels"]
    )  # of one subject
    with (folder / "evaluation.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert float(line["correlation"]) == row["correlation"]


def test_every_property_of_an_evaluation_is_there(trained, tmp_path):
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs/evaluate.yaml"), workflow_type="evaluation",
        bundle_root=str(ROOT), dataset_dir=str(trained.held_out), ckpt_dir=str(trained.ckpt_dir),
        output_dir=str(tmp_path), learned_atlas={"device": "cpu"},
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


def evaluate(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run_module("bundle", [verb, *words], ROOT, os.environ)


@pytest.mark.parametrize(
    ("case", "words", "code", "messages"),
    [
        ("trained on", (), 3, ["trained on the maps of 5 of 5", "sub-01", "exclude"]),
        ("other cohort", (), 3, ["is not the cohort that the model was trained on"]),
        ("no model", (), 6, ["model.pt: no such model"]),
        ("held out", ("--learned_atlas#cohort#subjects=['sub-99']",), 3, ["sub-99"]),
        ("held out", ("--evaluate#folds=1",), 2, ["evaluate.folds = 1: must be an integer >= 2"]),
        ("held out", ("--evaluate#fold=3",), 2, ["evaluate.fold", "did you mean folds?"]),
    ],
)
def test_mistakes_are_one_message_and_publish_nothing(
    case, words, code, messages, trained, refused, tmp_path
):
    folders = {"dataset_dir": trained.held_out, "ckpt_dir": trained.ckpt_dir}
    if case == "trained on":
        folders["dataset_dir"] = trained.dataset_dir
    if case == "no model":
        folders["ckpt_dir"] = tmp_path / "models"
    if case == "other cohort":
        shutil.copytree(trained.held_out, tmp_path / "data")
        folders["training_dir"] = tmp_path / "data"
        words = (*words, "--learned_atlas#min_subjects=1")
    output = tmp_path / "output"
    given = [f"--{key}={folder}" for key, folder in folders.items()]
    result = evaluate(
        "evaluate", *given, f"--output_dir={output}", "--learned_atlas#device=cpu", *words
    )
    refused(result, code, *messages)
    assert not output.exists()
