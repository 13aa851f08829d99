"""The scripts that the docs' figures come from run, and measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from warm_process import run_module

from bundle.bench.atlas_quality import measure
from bundle.bench.picture import draw
from scripts.cohort import read_density

ROOT = Path(__file__).resolve().parents[2]


def test_quality_is_measured_from_the_published_files(trained: Any) -> None:
    result = measure(trained.atlas)
    assert result["subjects"] == 5
    assert result["folded_fields"] == result["negative_voxels"] == 0
    assert result["background_above_zero"] == 0
    assert result["pairwise_correlation_after"] > result["pairwise_correlation_before"]
    described = json.loads((trained.atlas / "atlas.json").read_text())["fields"]
    # In slabs there and in one piece here, which rounds the last bit otherwise.
    assert described["smallest_jacobian"] == pytest.approx(
        min(result["smallest_jacobian"], result["smallest_corner_jacobian"]), rel=1e-6
    )
    # The true fields are better than a barely trained network's, and centred.
    assert result["true_warps"]["tre"] < 0.1 < result["truth"]["tre"]
    assert result["true_warps"]["shift"] < 0.05
    assert result["no_registration"]["tre"] > result["truth"]["tre"]
    assert result["no_registration"]["vol"] == 1
    assert 0 < result["truth"]["bridge_dice"] < result["true_warps"]["bridge_dice"]


def test_labels_of_subjects_are_compared_in_template_space(trained: Any, tmp_path: Path) -> None:
    about = json.loads((trained.atlas / "atlas.json").read_text())
    for subject in about["cohort"]["subjects"]:
        image = nib.load(subject["maps"][0]["path"])
        values = np.asarray(image.dataobj)
        labels = (values > 0).astype(np.uint8) + (values > np.median(values[values > 0]))
        name = f"{subject['subject']}.nii.gz"
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), image.affine), tmp_path / name)
    result = measure(trained.atlas, str(tmp_path / "{subject}.nii.gz"))
    assert 0.1 < result["label_dice_before"] < result["label_dice"] < 1


def test_a_template_off_its_place_is_noticed(trained: Any, tmp_path: Path) -> None:
    """The correlation with the truth falls when the published mean is shifted."""
    moved = tmp_path / "atlas"
    subprocess.run(["cp", "-r", str(trained.atlas), str(moved)], check=True)
    path = moved / "atlas_mean.nii.gz"
    values, grid = read_density(path)
    shifted = np.roll(values.astype(np.float32), 4, axis=0)
    nib.save(nib.Nifti1Image(shifted, grid.affine), path)
    before = measure(trained.atlas)["truth"]["r_to_truth"]
    assert measure(moved)["truth"]["r_to_truth"] < before - 0.1


def test_the_picture_is_drawn(trained: Any, tmp_path: Path) -> None:
    target = tmp_path / "pictures" / "atlas.png"
    draw(trained.atlas, target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_training_step_is_timed() -> None:
    options = ["--shape", "17", "16", "18", "--steps", "1", "--threads", "1"]
    words = [*options, "--layouts", "bfloat16", "monai"]
    done = run_module("bundle.bench.training_step", words, ROOT, os.environ, timeout=200)
    assert done.returncode == 0, done.stderr
    layouts = json.loads(done.stdout[done.stdout.index("{") :])["layouts"]
    assert list(layouts) == ["bfloat16", "monai"]
    assert all(one["seconds"] > 0 and 0.1 < one["peak_gib"] < 4 for one in layouts.values())
