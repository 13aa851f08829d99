"""Training as users run it: what is published, what is refused, and what survives a kill."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy import ndimage
from warm_process import run_module, started_module

from scripts.atlas.published_model import published_network
from scripts.errors import CheckpointError
from scripts.networks.described import weights_identity
from scripts.phantom import write_demo_cohort
from scripts.runtime.error_report import find_user_error
from scripts.settings.atlas import BASELINE_MAPS, LearnedAtlasConfig
from scripts.spatial.fields import field_names

ROOT = Path(__file__).resolve().parents[2]
COUNTS = "tractography/probtrackx2/whole_brain/warped_streamlines/fdt_paths.nii.gz"
SUBJECTS = [f"sub-{number:02d}" for number in range(1, 6)]
DIRECTIONS = ("from-subject_to-template", "from-template_to-subject")

# For what needs no command line: one process, one epoch, a small network.
QUICK: dict[str, Any] = {
    "learned_atlas#device": "cpu",
    "learned_atlas#dtype": "float32",
    "learned_atlas#model#enc_features": [4, 8],
    "learned_atlas#model#dec_features": [8, 8, 4],
    "learned_atlas#optimizer#epochs": 1,
    "learned_atlas#refine#rounds": 1,
    "learned_atlas#refine#iterations": 1,
    "learned_atlas#refine#network_epochs": 1,
}


# ---------------------------------------------------------------------------------------------
# Reading what was published, without the bundle's own readers
# ---------------------------------------------------------------------------------------------


def volume(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def density(dataset_dir: Path, subject: str) -> np.ndarray:
    """A subject's normalised density, straight from its files."""
    counts = dataset_dir / subject / COUNTS
    return volume(counts) / float((counts.parent / "waytotal").read_text())


def voxel_field(path: Path) -> np.ndarray:
    """A field file's displacement in voxels, (3, X, Y, Z)."""
    image = nib.load(path)
    lps = np.asarray(image.dataobj, dtype=np.float64)[:, :, :, 0]
    ras = lps * (-1, -1, 1)
    return np.moveaxis(ras @ np.linalg.inv(image.affine[:3, :3]).T, -1, 0)


def resampled(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """image(x + u(x)), linear, 0 outside."""
    points = np.indices(image.shape) + displacement
    return ndimage.map_coordinates(image, points, order=1, mode="grid-constant", cval=0)


def round_trip(fields: Path, subject: str) -> float:
    """What is left of the moves, root mean square, after going there and back."""
    forward, backward = (voxel_field(fields / name) for name in field_names(subject))
    again = np.stack([resampled(axis, forward) for axis in backward]) + forward
    inside = (slice(None), *[slice(4, -4)] * 3)  # where no point leaves the volume
    assert np.abs(forward[inside]).max() > 0.1
    return float(np.sqrt(np.mean(again[inside] ** 2) / np.mean(forward[inside] ** 2)))


def unpacked(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by name, compressed ones as what they hold."""
    return {
        str(path.relative_to(folder)): gzip.decompress(path.read_bytes())
        if path.suffix == ".gz"
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_atlas(one: Path, other: Path) -> None:
    """Maps, fields and Jacobians bit by bit; descriptions but for when they were written."""
    ours, theirs = unpacked(one), unpacked(other)
    descriptions, afresh = [], []
    for files in (ours, theirs):
        described = json.loads(files.pop("atlas.json"))
        created = described.pop("created").encode()
        del described["description_sha256"], described["files"]["quality.html"]
        afresh.append(not described["settings"].pop("resume"))
        files["quality.html"] = files["quality.html"].replace(created, b"")
        descriptions.append(described)
    assert ours.keys() == theirs.keys()
    if any(afresh):  # the page shows that setting
        del ours["quality.html"], theirs["quality.html"]
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert descriptions[0] == descriptions[1]


def assert_complete(
    atlas: Path, shape: tuple[int, ...], subjects: Iterable[str], templates: int = 1
) -> None:
    """Five sound maps a template, two fields a subject, and no fold."""
    for number in range(templates):
        folder = atlas / f"template-{number + 1}" if templates > 1 else atlas
        for name in BASELINE_MAPS:
            values = volume(folder / f"atlas_{name}.nii.gz")
            assert values.shape == shape
            assert np.isfinite(values).all()
            assert values.min() >= 0 < values.max()
    jacobian = json.loads((atlas / "jacobian.json").read_text())
    assert list(jacobian) == list(subjects)
    for subject in subjects:
        for name in field_names(subject):
            assert np.isfinite(volume(atlas / "fields" / name)).all()
        assert all(jacobian[subject][way]["corner_min"] > 0 for way in DIRECTIONS)


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
    nobody = np.max(warped, axis=0) == 0
    assert nobody.any()
    for name in ("std", "std_error", "cov", "prob_threshold"):
        assert not volume(trained.atlas / f"atlas_{name}.nii.gz")[nobody].any()


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


def assert_one_error(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The message of a command that ended with one message and no traceback."""
    both = result.stdout + result.stderr
    assert result.returncode == status, both
    assert "Traceback" not in both
    assert " ERROR " not in both
    lines = result.stderr.splitlines()
    (start,) = (index for index, line in enumerate(lines) if line.startswith("error: "))
    return "\n".join(lines[start:])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--learned_atlas#optimizer#lr=-1", "learned_atlas.optimizer.lr = -1: must be a number >"),
        ("--learned_atlas#device=cuda:99", "'cuda:99' is a CUDA device that this machine"),
    ],
)
def test_bad_setting_ends_before_data_are_made(run_bundle, tmp_path, word, told):
    root = tmp_path / "root"
    result = run_bundle("training", "train", "--bundle_root", root, word)
    assert told in assert_one_error(result, 2)
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


# ---------------------------------------------------------------------------------------------
# An unfinished run
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(trained, run_bundle, tmp_path_factory) -> tuple[Path, str]:
    """Folder of a run that ended in a non-finite loss after one good epoch, and its message."""
    base = tmp_path_factory.mktemp("unfinished")
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}",
        f"--output_dir={base / 'output'}", f"--ckpt_dir={base / 'models'}", *trained.overrides,
        "--learned_atlas#optimizer#lr=1e30", "--learned_atlas#optimizer#batch_size=5",
    )  # fmt: skip
    return base, assert_one_error(result, 4)


def test_non_finite_loss_is_located(unfinished):
    base, message = unfinished
    assert "not finite in epoch 2, iteration 2, subjects " in message
    for name in SUBJECTS:
        assert name in message
    assert not (base / "output" / "learned_atlas").exists()
    assert not (base / "models" / "model.pt").exists()


def test_non_finite_loss_keeps_the_last_good_checkpoint(unfinished):
    base, _ = unfinished
    kept = torch.load(base / "models" / "run_state" / "training.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert np.isfinite(kept["history"][0]["loss"])
    assert all(torch.isfinite(tensor).all() for tensor in kept["network"].values())


def test_network_that_is_not_finite_is_never_saved(trained, tmp_path):
    # The gradient of a finite loss isn't finite, and no further loss is looked at.
    made = workflow(trained.dataset_dir, tmp_path, **{"learned_atlas#optimizer#batch_size": 5})
    network = made.parser.get_parsed_content("network")
    network.unet.field.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "is not finite after epoch 1, iteration 1" in str(find_user_error(caught.value))
    assert not (tmp_path / "models" / "run_state" / "training.pt").exists()
    assert not (tmp_path / "output" / "learned_atlas").exists()


def test_fields_that_are_not_finite_are_never_published(trained, tmp_path):
    made = workflow(
        trained.dataset_dir, tmp_path,
        **{"learned_atlas#optimizer#lr": 1e30, "learned_atlas#optimizer#batch_size": 5,
           "learned_atlas#verify_jacobian": False, "learned_atlas#refine#network_epochs": 0},
    )  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "field of subject sub-01 is not finite" in str(find_user_error(caught.value))
    assert not (tmp_path / "output" / "learned_atlas").exists()


def state_error(made: ConfigWorkflow) -> CheckpointError:
    with pytest.raises(RuntimeError) as caught:
        made.parser.get_parsed_content("state")
    error = find_user_error(caught.value)
    assert isinstance(error, CheckpointError)
    return error


def test_resuming_with_other_settings_names_them(trained, unfinished):
    pairs = [word.removeprefix("--").split("=") for word in trained.overrides]
    words = {key: json.loads(text) if text[0] == "[" else text for key, text in pairs}
    made = workflow(trained.dataset_dir, unfinished[0], **words)
    message = str(state_error(made))
    assert "learned_atlas.optimizer.lr was 1e+30, now 0.001" in message
    assert "learned_atlas.optimizer.batch_size was 5, now 1" in message
    assert "epochs" not in message
    assert "--learned_atlas#resume false" in message


def test_resuming_with_another_cohort_is_refused(trained, unfinished, tmp_path):
    for name, copy in zip(SUBJECTS, [*SUBJECTS[:4], "sub-09"], strict=True):
        shutil.copytree(trained.dataset_dir / name, tmp_path / copy)
    assert "another cohort" in str(state_error(workflow(tmp_path, unfinished[0])))


def test_resume_false_starts_afresh(trained, unfinished, run_bundle, tmp_path):
    base, _ = unfinished
    models = shutil.copytree(base / "models", tmp_path / "models")
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}",
        f"--output_dir={tmp_path / 'output'}", f"--ckpt_dir={models}", *trained.overrides,
        "--learned_atlas#resume", "false",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same_atlas(tmp_path / "output" / "learned_atlas", trained.atlas)


# ---------------------------------------------------------------------------------------------
# Killed, and started again
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(trained, tmp_path) -> list[str]:
    """The words that made `trained`, with folders of its own."""
    return [
        "run", "training", "--config_file", "configs/train.yaml",
        f"--dataset_dir={trained.dataset_dir}", f"--output_dir={tmp_path / 'output'}",
        f"--ckpt_dir={tmp_path / 'models'}", *trained.overrides,
    ]  # fmt: skip


def killed(
    command: list[str], signum: signal.Signals, ripe: Callable[[], bool]
) -> subprocess.CompletedProcess[str]:
    """Start a command, and send it a signal as soon as something is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started_module("monai.bundle", command, ROOT, environment) as process:
        end = time.monotonic() + 120
        while not ripe():
            assert process.poll() is None, process.output()
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signum)
        return process.wait(60)


def started_again(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = run_module("monai.bundle", command, ROOT, environment)
    assert result.returncode == 0, result.stderr
    return result


def test_killed_in_every_phase_ends_like_an_unbroken_run(command, trained, tmp_path):
    state = tmp_path / "models" / "run_state"
    for landmark in ("run.json", "training.pt", "refinement/round-000/000001.pt"):
        result = killed(command, signal.SIGKILL, (state / landmark).exists)
        assert result.returncode == -signal.SIGKILL
        assert not (tmp_path / "output" / "learned_atlas").exists()
    epochs = torch.load(state / "training.pt", weights_only=True)["epoch"]
    output = started_again(command).stdout
    assert "continuing the unfinished run" in output
    assert f"training continues after epoch {epochs}" in output
    assert_same_atlas(tmp_path / "output" / "learned_atlas", trained.atlas)
    assert json.loads((state / "run.json").read_text())["finished"] is True


def test_interrupted_terminated_and_killed_while_publishing(command, trained, tmp_path):
    state, output = tmp_path / "models" / "run_state", tmp_path / "output"
    result = killed(command, signal.SIGINT, (state / "training.pt").exists)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert " ERROR " not in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "interrupted: start the same command again to continue a training or an alignment"
    )

    refined = state / "refinement" / "round-000" / "000002.pt"
    result = killed(command, signal.SIGTERM, refined.exists)
    assert result.returncode == -signal.SIGTERM
    assert "training continues after epoch" in result.stdout

    result = killed(command, signal.SIGKILL, lambda: any(output.glob(".learned_atlas.staging-*")))
    assert result.returncode == -signal.SIGKILL
    assert not (output / "learned_atlas").exists()
    assert any(output.glob(".learned_atlas.staging-*"))

    started_again(command)
    assert_same_atlas(output / "learned_atlas", trained.atlas)
    assert [path.name for path in output.iterdir() if path.name[0] == "."] == []
    first, second = (torch.load(f / "model.pt", weights_only=True)
                     for f in (tmp_path / "models", trained.ckpt_dir))  # fmt: skip
    different = [n for n in first if n != "described" and not torch.equal(first[n], second[n])]
    assert different == []


# ---------------------------------------------------------------------------------------------
# Other models and other data, in one process
# ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _keep_excepthook(monkeypatch):
    """Loading settings in this process sets a hook for the command line."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def workflow(dataset_dir: Path, base: Path, **overrides: Any) -> ConfigWorkflow:
    """configs/train.yaml over a dataset, writing below ``base``."""
    values: dict[str, Any] = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(base / "output"),
        "ckpt_dir": str(base / "models"),
        **QUICK,
        **{key: str(one) if isinstance(one, Path) else one for key, one in overrides.items()},
    }
    config = str(ROOT / "configs" / "train.yaml")
    made = ConfigWorkflow(config_file=config, logging_file=False, workflow_type="train", **values)
    made.initialize()
    return made


def published(dataset_dir: Path, base: Path, **overrides: Any) -> Path:
    workflow(dataset_dir, base, **overrides).run()
    return base / "output" / "learned_atlas"


def test_config_has_every_property_that_monai_asks_for(trained, tmp_path):
    assert not workflow(trained.dataset_dir, tmp_path).check_properties()


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A cohort whose sizes no pooling divides."""
    folder = tmp_path_factory.mktemp("odd") / "demo"
    write_demo_cohort(folder, subjects=5, held_out=0, shape=(31, 35, 29), streamlines=60)
    return folder


def test_odd_sizes_and_cache_on_disk(odd, tmp_path):
    shape = (31, 35, 29)
    in_ram = published(odd, tmp_path / "ram")
    assert_complete(in_ram, shape, SUBJECTS)
    cached = {"learned_atlas#cohort#cache": "disk"}
    on_disk = published(odd, tmp_path / "disk", **cached)
    for name in BASELINE_MAPS:
        file = f"atlas_{name}.nii.gz"
        np.testing.assert_array_equal(volume(in_ram / file), volume(on_disk / file))
    # What was prepared for one offset doesn't serve another.
    other = {"learned_atlas#loss#log_offset": 1e-2}
    again = published(odd, tmp_path / "disk", **cached, **other)
    fresh = published(odd, tmp_path / "fresh", **other)
    for name in BASELINE_MAPS:
        file = f"atlas_{name}.nii.gz"
        np.testing.assert_array_equal(volume(again / file), volume(fresh / file))


def test_plain_displacement_without_integration(odd, tmp_path):
    atlas = published(odd, tmp_path, **{"learned_atlas#model#int_steps": 0})
    assert_complete(atlas, (31, 35, 29), SUBJECTS)
    assert round_trip(atlas / "fields", "sub-01") < 0.1


def test_two_tracts_under_one_deformation(odd, tmp_path):
    named = {"callosum": 0, "arcuate": 1}
    for subject in SUBJECTS:
        image = nib.load(odd / ".truth" / "subjects" / subject / "bundles.nii.gz")
        folder = tmp_path / "data" / subject / "maps"
        folder.mkdir(parents=True)
        for tract, channel in named.items():
            counts = np.asarray(image.dataobj)[..., channel]
            nib.save(nib.Nifti1Image(counts, image.affine), folder / f"{tract}.nii.gz")
    atlas = published(
        tmp_path / "data", tmp_path,
        **{"learned_atlas#cohort#pattern": "{subject}/maps/{tract}.nii.gz",
           "learned_atlas#cohort#tracts": list(named),
           "learned_atlas#cohort#normalisation": "streamline_density",
           "learned_atlas#model#channels": 2},
    )  # fmt: skip
    assert_complete(atlas, (31, 35, 29, 2), SUBJECTS)
    std = volume(atlas / "atlas_std.nii.gz")
    for tract, channel in named.items():
        warped = []
        for subject in SUBJECTS:
            counts = volume(tmp_path / "data" / subject / "maps" / f"{tract}.nii.gz")
            field = voxel_field(atlas / "fields" / field_names(subject)[0])
            warped.append(resampled(counts / counts.sum(), field))
        expected = np.std(warped, axis=0)
        np.testing.assert_allclose(std[..., channel], expected, atol=1e-5 * expected.max())


def test_two_templates_divide_the_subjects(tmp_path):
    data = tmp_path / "data"
    write_demo_cohort(data, subjects=6, held_out=0, shape=(32, 36, 32), streamlines=60, anatomies=2)
    names = [f"sub-{number:02d}" for number in range(1, 7)]
    atlas = published(data, tmp_path, **{"learned_atlas#model#n_templates": 2})
    assert_complete(atlas, (32, 36, 32), names, templates=2)
    mixture = json.loads((atlas / "atlas.json").read_text())["mixture"]
    shares = np.array([mixture[name] for name in names])
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    anatomy = json.loads((data / ".truth" / "truth.json").read_text())["anatomy"]
    homes = shares.argmax(1)
    kinds = np.array([anatomy[name] for name in names])
    assert set(homes[kinds == 0]).isdisjoint(homes[kinds == 1])
    one, other = (volume(atlas / f"template-{k}" / "atlas_mean.nii.gz") for k in (1, 2))
    assert np.abs(one - other).max() > 0.1 * one.max()


def test_planes(odd, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for subject in SUBJECTS:
        image = nib.load(odd / subject / COUNTS)
        plane = np.asarray(image.dataobj).sum(2, keepdims=True)
        nib.save(nib.Nifti1Image(plane, image.affine), data / f"{subject}.nii.gz")
    atlas = published(
        data, tmp_path,
        **{"learned_atlas#cohort#layout": "flat", "learned_atlas#cohort#normalisation": "max"},
    )  # fmt: skip
    assert_complete(atlas, (31, 35, 1), SUBJECTS)
    planes, warped = [volume(data / f"{subject}.nii.gz")[..., 0] for subject in SUBJECTS], []
    for subject, plane in zip(SUBJECTS, planes, strict=True):
        field = voxel_field(atlas / "fields" / field_names(subject)[0])
        assert not field[2].any()
        warped.append(resampled(plane / plane.max(), field[:2, :, :, 0]))
    std = volume(atlas / "atlas_std.nii.gz")[..., 0]
    np.testing.assert_allclose(std, np.std(warped, axis=0), atol=1e-5)
