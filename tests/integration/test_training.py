"""Training as users run it: what is published, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from training_runs import (
    COUNTS,
    DIRECTIONS,
    SUBJECTS,
    assert_complete,
    assert_one_error,
    assert_same_atlas,
    density,
    resampled,
    round_trip,
    unpacked,
    volume,
    voxel_field,
    workflow,
)

from scripts.atlas.published_model import published_network
from scripts.networks.described import weights_identity
from scripts.runtime.error_report import find_user_error
from scripts.settings.atlas import BASELINE_MAPS, LearnedAtlasConfig
from scripts.spatial.fields import field_names

# ---------------------------------------------------------------------------------------------
# What a run publishes
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warped(trained) -> list[np.ndarray]:
    """Every subject's density in template space, by its published field."""
    return [
        resampled(
            density(trained.dataset_dir, subject),
            voxel_field(trained.atlas / "fields" / field_names(subject)[0]),
        )
        for subject in SUBJECTS
    ]


def test_published_files_are_complete(trained):
    maps = {f"atlas_{name}.nii.gz" for name in BASELINE_MAPS}
    fields = {f"fields/{name}" for subject in SUBJECTS for name in field_names(subject)}
    pages = {"atlas.json", "dataset_description.json", "jacobian.json", "quality.html"}
    sidecars = {name.removesuffix(".nii.gz") + ".json" for name in maps | fields}
    assert set(unpacked(trained.atlas)) == maps | fields | sidecars | pages
    assert_complete(trained.atlas, (32, 36, 32), SUBJECTS)
    # Nothing is left of the staging folder.
    assert [path.name for path in trained.output_dir.iterdir() if path.name[0] == "."] == []


def test_maps_follow_their_formulas(trained, warped):
    maps = {name: volume(trained.atlas / f"atlas_{name}.nii.gz") for name in BASELINE_MAPS}
    sample_mean, std = np.mean(warped, axis=0), np.std(warped, axis=0)
    scale = sample_mean.max()
    np.testing.assert_allclose(maps["std"], std, atol=1e-5 * scale)
    np.testing.assert_allclose(maps["std_error"], std / np.sqrt(len(warped)), atol=1e-5 * scale)
    firm = sample_mean > 0.01 * scale
    cov = np.divide(std, sample_mean, out=np.zeros_like(std), where=firm)
    edge = np.abs(sample_mean - 0.01 * scale) < 1e-5 * scale  # may fall on either side
    np.testing.assert_allclose(maps["cov"][~edge], cov[~edge], atol=1e-3)
    present = 100 * np.mean([one > 1e-3 for one in warped], axis=0)
    close = np.min([np.abs(one - 1e-3) for one in warped], axis=0) < 1e-5 * scale
    np.testing.assert_allclose(maps["prob_threshold"][~close], present[~close], atol=1e-4)
    assert close.mean() < 0.01


def test_mean_is_the_learned_template_in_density_units(trained):
    state = torch.load(trained.ckpt_dir / "model.pt", weights_only=True)
    described = json.loads((trained.atlas / "atlas.json").read_text())
    crop = described["cohort"]["crop"]
    whole = np.zeros((32, 36, 32))
    box = tuple(slice(a, b) for a, b in zip(crop["start"], crop["stop"], strict=True))
    whole[box] = np.expm1(state["template"][0, 0].double().numpy()) * 1e-3
    mean = volume(trained.atlas / "atlas_mean.nii.gz")
    np.testing.assert_allclose(mean, whole, rtol=1e-4, atol=1e-7)


def test_background_is_exactly_zero(trained, warped):
    anywhere = np.sum([density(trained.dataset_dir, subject) for subject in SUBJECTS], axis=0) > 0
    far = ~ndimage.maximum_filter(anywhere, size=11, mode="constant")
    assert far.any()
    assert not volume(trained.atlas / "atlas_mean.nii.gz")[far].any()
    empty = np.max(warped, axis=0) == 0
    assert empty.any()
    for name in ("std", "std_error", "cov", "prob_threshold"):
        assert not volume(trained.atlas / f"atlas_{name}.nii.gz")[empty].any()


@pytest.mark.parametrize("name", BASELINE_MAPS)
def test_map_has_the_header_of_the_first_subject(trained, name):
    first = nib.load(trained.dataset_dir / SUBJECTS[0] / COUNTS)
    made = nib.load(trained.atlas / f"atlas_{name}.nii.gz")
    assert made.shape == first.shape
    assert made.get_data_dtype() == np.float32
    np.testing.assert_array_equal(made.affine, first.affine)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert made.header[code] == first.header[code]


@pytest.mark.parametrize("way", [0, 1], ids=DIRECTIONS)
def test_fields_are_files_that_itk_reads_as_transforms(trained, way):
    for subject in SUBJECTS:
        image = nib.load(trained.atlas / "fields" / field_names(subject)[way])
        assert image.shape == (32, 36, 32, 1, 3)
        assert image.header["intent_code"] == 1007
        assert image.get_data_dtype() == np.float32


def test_fields_of_a_subject_are_inverse_to_each_other(trained):
    for subject in SUBJECTS:
        assert round_trip(trained.atlas / "fields", subject) < 0.1


@pytest.mark.parametrize("way", [0, 1], ids=DIRECTIONS)
def test_jacobian_json_agrees_with_the_written_fields(trained, way):
    content = json.loads((trained.atlas / "jacobian.json").read_text())
    for subject in SUBJECTS:
        path = trained.atlas / "fields" / field_names(subject)[way]
        affine = nib.load(path).affine[:3, :3]
        # In world units: the derivative of x + d(x) by millimetres.
        moved = np.tensordot(affine, voxel_field(path), axes=1)
        slopes = np.stack([np.gradient(moved, axis=1 + axis) for axis in range(3)], axis=-1)
        matrix = np.eye(3) + np.moveaxis(slopes, 0, -2) @ np.linalg.inv(affine)
        determinant = np.linalg.det(matrix)
        result = content[subject][DIRECTIONS[way]]
        assert result["min"] == pytest.approx(determinant.min(), abs=1e-4)
        assert result["share_folded"] == np.mean(determinant <= 0)
        assert result["corner_min"] == pytest.approx(smallest_corner(moved, affine), abs=1e-4)
        assert result["corner_share_folded"] == 0


def smallest_corner(moved: np.ndarray, affine: np.ndarray) -> float:
    """Smallest determinant of plain differences along the three edges at a corner of a cell."""
    cells = [n - 1 for n in moved.shape[1:]]
    smallest = np.inf
    for corner in itertools.product((0, 1), repeat=3):
        columns: list[np.ndarray] = []
        for axis in range(3):
            edge = np.diff(moved, axis=1 + axis)
            for other in set(range(3)) - {axis}:
                edge = np.take(edge, range(corner[other], corner[other] + cells[other]), 1 + other)
            columns.append(edge)
        slopes = np.moveaxis(np.stack(columns, axis=-1), 0, -2)
        matrix = np.eye(3) + slopes @ np.linalg.inv(affine)
        smallest = min(smallest, float(np.linalg.det(matrix).min()))
    return smallest


def test_description_is_complete(trained):
    content = json.loads((trained.atlas / "atlas.json").read_text())
    assert content["name"] == "tract_density_atlas"
    assert content["training_space"] == "template_native"
    assert content["normalisation"] == "waytotal"
    assert content["n_subjects"] == 5
    assert content["mixture"] is None
    assert {"presence_value", "cov_mean_threshold_pct", "log_offset", "created"} <= set(content)
    assert set(content["versions"]) == {
        "python", "torch", "monai", "pytorch-ignite", "nibabel", "numpy", "scipy", "pydantic",
    }  # fmt: skip
    for subject in content["cohort"]["subjects"]:
        (one,) = subject["maps"]
        path = trained.dataset_dir / subject["subject"] / COUNTS
        assert one["path"] == str(path)
        assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert one["divisor"] == float((path.parent / "waytotal").read_text())
    assert LearnedAtlasConfig.load(content["settings"]).as_dict() == content["settings"]
    assert content["training"]["epochs"] == 2
    losses = content["training"]["losses"]
    assert {"loss", "similarity", "presence", "smoothness"} <= set(losses)
    assert 0 < losses["loss"] < 2
    assert content["weights"] == weights_identity(published_network(trained.ckpt_dir / "model.pt"))


def test_description_sums_the_fields_up(trained):
    content = json.loads((trained.atlas / "atlas.json").read_text())["fields"]
    fit = json.loads((trained.atlas / "atlas.json").read_text())["fit"]
    assert {"correlation", "overlap"} == set(fit)
    assert all(0 < value < 1 for value in fit.values())
    jacobian = json.loads((trained.atlas / "jacobian.json").read_text())
    each = [jacobian[subject][way] for subject in SUBJECTS for way in DIRECTIONS]
    assert content["folded"] == 0
    assert content["smallest_jacobian"] == min(min(one["min"], one["corner_min"]) for one in each)
    moves = [voxel_field(trained.atlas / "fields" / field_names(s)[0]) for s in SUBJECTS]
    every = np.sqrt(np.mean([(move**2).sum(0).mean() for move in moves]))
    assert content["displacement_rms_voxels"] == pytest.approx(every, rel=1e-3)
    # The template stands in the cohort's middle.
    assert content["mean_displacement_rms_voxels"] < 0.3
    assert content["mean_displacement_rms_voxels"] < 0.3 * every


def test_losses_go_to_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.output_dir / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    content = json.loads((trained.atlas / "atlas.json").read_text())["training"]
    assert len(losses) == content["epochs"]
    assert losses[-1] == pytest.approx(content["losses"]["loss"], rel=1e-6)


def test_same_seed_elsewhere_gives_the_same_result_bit_for_bit(trained, run_bundle, tmp_path):
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}",
        f"--output_dir={tmp_path / 'output'}", f"--ckpt_dir={tmp_path / 'models'}",
        *trained.overrides, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same_atlas(tmp_path / "output" / "learned_atlas", trained.atlas)
    assert "2/2" in result.stderr
    assert "loss=" in result.stderr  # the progress bar shows the terms


# ---------------------------------------------------------------------------------------------
# What a run refuses
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--learned_atlas#optimizer#lr=-1", "learned_atlas.optimizer.lr = -1: must be a number >"),
        ("--learned_atlas#device=cuda:99", "'cuda:99' is a CUDA device that this machine"),
    ],
)
def test_bad_setting_ends_before_data_are_made(run_bundle, tmp_path, word, expected):
    root = tmp_path / "root"
    result = run_bundle("training", "train", "--bundle_root", root, word)
    assert expected in assert_one_error(result, 2)
    assert not root.exists()


def test_disabled_is_one_line_and_nothing_else(run_bundle, tmp_path):
    root = tmp_path / "root"
    result = run_bundle(
        "training", "train", "--bundle_root", root, "--learned_atlas#enabled", "false"
    )
    assert result.returncode == 0, result.stderr
    ours = [line for line in result.stdout.splitlines() if "Setting logging" not in line]
    assert len(ours) == 1
    assert "enabled is false" in ours[0]
    assert "rror" not in result.stderr
    assert not root.exists()


def test_too_few_subjects_are_reported_in_a_table(trained, run_bundle, tmp_path):
    dataset = tmp_path / "dataset"
    for name in SUBJECTS:
        shutil.copytree(trained.dataset_dir / name, dataset / name)
    (dataset / "sub-02" / COUNTS).with_name("waytotal").write_text("0\n")
    output, models = tmp_path / "output", tmp_path / "models"
    result = run_bundle(
        "training", "train", f"--dataset_dir={dataset}", f"--output_dir={output}",
        f"--ckpt_dir={models}", *trained.overrides,
    )  # fmt: skip
    message = assert_one_error(result, 3)
    assert "4 usable subjects" in message
    assert "min_subjects = 5" in message
    for name in SUBJECTS:
        status = "rejected" if name == "sub-02" else "found"
        (row,) = (line for line in message.splitlines() if line.split()[:2] == [name, status])
        assert "waytotal" in row or status == "found"
    assert not output.exists()
    assert not models.exists()


@pytest.mark.parametrize("what", ["output_dir", "ckpt_dir"])
def test_file_in_the_way_of_a_folder(trained, tmp_path, what):
    (tmp_path / "file").write_text("precious")
    folders = {"output_dir": "output", "ckpt_dir": "models", what: "file/below"}
    made = workflow(trained.dataset_dir, tmp_path, **{k: tmp_path / v for k, v in folders.items()})
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "file is not a folder" in str(find_user_error(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_folding_publishes_nothing_and_leaves_the_earlier_atlas(trained, run_bundle, tmp_path):
    output, models = tmp_path / "output", tmp_path / "models"
    shutil.copytree(trained.atlas, output / "learned_atlas")
    models.mkdir()
    shutil.copy(trained.ckpt_dir / "model.pt", models)
    before = unpacked(output / "learned_atlas"), (models / "model.pt").read_bytes()
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}", f"--output_dir={output}",
        f"--ckpt_dir={models}", *trained.overrides,
        "--learned_atlas#loss#smoothness_weight=0", "--learned_atlas#optimizer#lr=0.5",
        "--learned_atlas#model#int_steps=0", "--learned_atlas#refine#rounds=0",
    )  # fmt: skip
    message = assert_one_error(result, 5)
    assert "folds (smallest det J -" in message
    assert "smoothness_weight" in message
    assert (unpacked(output / "learned_atlas"), (models / "model.pt").read_bytes()) == before
    assert {path.name for path in output.iterdir()} <= {"learned_atlas", "tensorboard"}
