"""make-pairs, train-fields and predict-fields by the documented commands, on small images."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter, map_coordinates
from warm_process import started_module

from bundle import cli
from scripts.engines.run_state import RunState
from scripts.settings.train_fields import TrainFieldsConfig
from scripts.spatial.fields import read_field
from scripts.supervised.loading import open_field_pairs
from scripts.supervised.saving import load_field_network

ROOT = cli.ROOT
SHAPE = (40, 56)
SMALL = [
    "--train_fields#device", "cpu", "--train_fields#dtype", "float32",
    "--train_fields#model#global_filters", "[4,4]", "--train_fields#model#dense", "8",
    "--train_fields#model#down_filters", "[4,4]", "--train_fields#model#up_filters", "[4,4]",
    "--train_fields#model#start_filters", "[4]", "--train_fields#model#middle_filters", "[4]",
    "--train_fields#model#end_filters", "[6]", "--train_fields#optimizer#num_workers", "0",
]  # fmt: skip
MOVES = [
    "--make_pairs#elastic#rms", "1.0", "--make_pairs#elastic#width", "8",
    "--make_pairs#elastic#anchor", "0.25", "--make_pairs#affine#translation", "3",
]  # fmt: skip


def run(verb: str, *words: object) -> int:
    return cli.main([verb, *map(str, words)])


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blurred noise inside of an ellipse, ``(count, *shape)`` uint8."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(a**2 for a in axes) < 0.5
    result = []
    for _ in range(count):
        noise = gaussian_filter(rng.standard_normal(shape), 2.5)
        values = inside * (0.6 + 0.4 * noise / np.abs(noise).max())
        result.append(np.rint(255 * gaussian_filter(values, 0.7) / values.max()))
    return np.clip(np.stack(result), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections, two stores, and all three networks trained for a moment."""
    root = tmp_path_factory.mktemp("supervised")
    np.savez(root / "sections.npz", images=images(5, SHAPE))
    for name, count, seed in (("train", 12, 0), ("test", 4, 1)):
        assert run(
            "make-pairs", "--reference", root / "sections.npz", "--output", root / name,
            "--make_pairs#count", count, "--make_pairs#seed", seed, *MOVES,
        ) == 0  # fmt: skip
    assert trained(root, root, "global", 12, "--train_fields#optimizer#lr", 0.01) == 0
    stage = root / "models" / "fields_global.pt"
    assert trained(root, root, "local", 2, "--train_fields#global_model", stage) == 0
    assert trained(root, root, "merged", 0) == 0
    return root


def trained(place: Path, root: Path, network: str, epochs: int, *more: object) -> int:
    return run(
        "train-fields", "--pairs", place / "train.h5", "--output_dir", root / "output",
        "--ckpt_dir", root / "models", "--train_fields#network", network,
        "--train_fields#optimizer#epochs", epochs, "--train_fields#validation", place / "test.h5",
        *SMALL, *more,
    )  # fmt: skip


def predicted(place: Path, output: Path, network: str, *more: object) -> int:
    return run(
        "predict-fields", "--ckpt_dir", place / "models", "--output_dir", output,
        "--device_name", "cpu", "--predict_fields#network", network, *more,
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_leaves_network_report_and_curves(place):
    for name in ("global", "local", "merged"):
        assert (place / "models" / f"fields_{name}.pt").is_file()
    report = json.loads((place / "output" / "fields" / "result.json").read_text())
    assert report["network"] == "merged"
    assert report["trained_on"] == 12
    assert report["held_out"] == 4
    assert {"distance_tissue", "distance_tissue_zero", "folded", "inverse"} <= set(
        report["metrics"]
    )
    assert (place / "output" / "fields" / "training_local.png").is_file()
    network = load_field_network(place / "models" / "fields_global.pt", "global")
    learned = network.parameters_of.weight.abs().max()
    assert learned > 0


def test_predictions_stand_in_the_stores_order_and_fit_its_images(place, tmp_path):
    assert predicted(place, tmp_path, "global", "--pairs", place / "test.h5",
                     "--predict_fields#batch_size", 3) == 0  # fmt: skip
    network = load_field_network(place / "models" / "fields_global.pt", "global")
    with (
        h5py.File(tmp_path / "fields" / "predictions.h5") as result,
        h5py.File(place / "test.h5") as store,
    ):
        assert result["deltas_xy"].shape == result["inv_deltas_xy"].shape == (4, *SHAPE, 2)
        np.testing.assert_array_equal(result["image_id"][...], store["image_id"][...])
        for i in range(4):
            pair = np.stack([store["ref"][i], store["img"][i]])[None] / np.float32(255)
            with torch.no_grad():
                wanted = network(torch.from_numpy(pair))[0].numpy()
            np.testing.assert_allclose(result["deltas_xy"][i, ..., 0], wanted[1], atol=1e-4)
            np.testing.assert_allclose(result["deltas_xy"][i, ..., 1], wanted[0], atol=1e-4)
            points = np.indices(SHAPE) + wanted
            moved = map_coordinates(store["img"][i].astype(float), points, order=1, mode="nearest")
            assert np.abs(result["img_registered"][i] - moved).max() < 1
    table = rows(tmp_path / "fields" / "metrics.csv")
    assert [row["pair"] for row in table] == ["0", "1", "2", "3", "mean"]
    mean = np.mean([float(row["distance"]) for row in table[:4]])
    assert float(table[4]["distance"]) == pytest.approx(mean, rel=1e-4)
    # Twelve epochs of twelve pairs: enough to beat no field at all on pairs of the same sections.
    assert float(table[4]["distance_tissue"]) < float(table[4]["distance_tissue_zero"])


def test_a_merged_prediction_holds_both_stages(place, tmp_path):
    assert predicted(place, tmp_path, "merged", "--pairs", place / "test.h5",
                     "--predict_fields#indexes", "[2, 0]") == 0  # fmt: skip
    with h5py.File(tmp_path / "fields" / "predictions.h5") as result:
        assert result["global_deltas_xy"].shape == (2, *SHAPE, 2)
        assert np.abs(result["global_deltas_xy"][...] - result["deltas_xy"][...]).max() > 1e-4
    assert [row["pair"] for row in rows(tmp_path / "fields" / "metrics.csv")] == ["2", "0", "mean"]


def test_fields_need_not_be_there_to_predict(place, tmp_path):
    with h5py.File(place / "test.h5") as store, h5py.File(tmp_path / "bare.h5", "w") as bare:
        for name in ("img", "ref", "image_id", "dataset_id"):
            bare[name] = store[name][...]
    assert predicted(place, tmp_path, "local", "--pairs", tmp_path / "bare.h5") == 0
    table = rows(tmp_path / "fields" / "metrics.csv")
    assert "correlation" in table[0]
    assert "distance" not in table[0]


def test_labels_and_landmarks_of_a_store_are_measured(place, tmp_path):
    with h5py.File(place / "test.h5") as store, h5py.File(tmp_path / "more.h5", "w") as more:
        for name in store:
            more[name] = store[name][...]
        labels = np.zeros((4, *SHAPE), np.int32)
        labels[:, 15:25, 20:36] = 7
        labels[:, 15:20, 20:36] = 9_000_001
        more["img_labels"] = more["ref_labels"] = labels
        more["img_landmarks"] = more["ref_landmarks"] = np.full((4, 1, 2), 20.0)
    (tmp_path / "tree.json").write_text('{"7": 3, "9000001": 3, "3": null}')
    assert predicted(
        place, tmp_path, "global", "--pairs", tmp_path / "more.h5",
        "--predict_fields#label_tree", tmp_path / "tree.json",
    ) == 0  # fmt: skip
    mean = rows(tmp_path / "fields" / "metrics.csv")[-1]
    assert float(mean["dice_zero"]) == 1
    assert 0 < float(mean["dice"]) < 1
    assert float(mean["dice_depth0"]) >= float(mean["dice_depth1"]) == float(mean["dice"])
    assert float(mean["landmarks_start"]) == 0
    (tmp_path / "tree.json").write_text('{"7": 3, "3": 7}')
    assert predicted(
        place, tmp_path, "global", "--pairs", tmp_path / "more.h5",
        "--predict_fields#label_tree", tmp_path / "tree.json",
    ) == 3  # fmt: skip


def test_images_get_fields_both_ways_and_the_moved_image(place, tmp_path):
    with h5py.File(place / "test.h5") as store:
        for name, values in (("fixed", store["ref"][0]), ("moving", store["img"][0])):
            affine = np.diag([0.5, 0.5, 1.0, 1.0])
            nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
    assert predicted(place, tmp_path, "merged", "--fixed", tmp_path / "fixed.nii.gz",
                     "--moving", tmp_path / "moving.nii.gz") == 0  # fmt: skip
    folder = tmp_path / "fields" / "moving"
    about = json.loads((folder / "predicted.json").read_text())
    assert about["kind"] == "predicted fields"
    field = read_field(folder / "moving_forward_field.nii.gz", 2)
    assert field.shape == (2, *SHAPE)
    moving = nib.load(tmp_path / "moving.nii.gz").get_fdata()
    wanted = map_coordinates(moving, np.indices(SHAPE) + field, order=1)
    moved = nib.load(folder / "moving_in_fixed.nii.gz").get_fdata().reshape(SHAPE)
    inner = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(moved[inner], wanted[inner], atol=0.5)
    assert (folder / "moving_inverse_field.nii.gz").is_file()
    assert (folder / "fixed_in_moving.nii.gz").is_file()


def test_volumes_work_the_same_way(tmp_path):
    for number, volume in enumerate(images(2, (20, 24, 18))):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"v{number}.nii.gz")
    assert run(
        "make-pairs", "--reference", tmp_path / "v*.nii.gz", "--output", tmp_path / "train",
        "--make_pairs#count", 3, "--make_pairs#elastic#rms", "0.5", "--make_pairs#elastic#width",
        "6", "--make_pairs#elastic#anchor", "0.4", "--make_pairs#affine#translation", "1",
    ) == 0  # fmt: skip
    for network, epochs in (("global", 1), ("local", 1), ("merged", 1)):
        assert run(
            "train-fields", "--pairs", tmp_path / "train.h5", "--output_dir", tmp_path / "output",
            "--ckpt_dir", tmp_path / "models", "--train_fields#network", network,
            "--train_fields#optimizer#epochs", epochs, *SMALL,
        ) == 0  # fmt: skip
    assert predicted(tmp_path, tmp_path, "merged", "--pairs", tmp_path / "train.h5") == 0
    with h5py.File(tmp_path / "fields" / "predictions.h5") as result:
        assert result["deltas"].shape == (3, 20, 24, 18, 3)
        assert np.isfinite(result["deltas"][...]).all()


# -- resume, kills ---------------------------------------------------------------------------


def killed(words: list[Any], ripe: Callable[[], bool], later: float = 0) -> None:
    """Start a command, and kill it some seconds after something is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started_module("bundle", [*map(str, words)], ROOT, environment) as process:
        deadline = time.monotonic() + 120
        while not ripe() and time.monotonic() < deadline:
            assert process.poll() is None, process.output()
            time.sleep(0.02)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path)["network"]


def test_a_training_that_was_cut_off_resumes_to_the_same_result_bit_for_bit(place, tmp_path):
    noisy = ["--train_fields#augment#augment_mov", "['noise','gain']"]
    assert trained(place, tmp_path / "whole", "local", 3, *noisy) == 0
    state = tmp_path / "cut" / "models" / "fields_local_run_state"
    words = [
        "train-fields", "--pairs", place / "train.h5", "--output_dir", tmp_path / "cut" / "output",
        "--ckpt_dir", tmp_path / "cut" / "models", "--train_fields#network", "local",
        "--train_fields#optimizer#epochs", "3", "--train_fields#validation", place / "test.h5",
        *SMALL, *noisy,
    ]  # fmt: skip
    killed(words, (state / "training.pt").exists)
    assert not (tmp_path / "cut" / "models" / "fields_local.pt").exists()
    done = torch.load(state / "training.pt")["epoch"]
    assert done < 3
    assert run(*words) == 0
    one, other = (weights(tmp_path / name / "models" / "fields_local.pt")
                  for name in ("whole", "cut"))  # fmt: skip
    for name in one:
        assert torch.equal(one[name], other[name]), name
    report = json.loads((tmp_path / "cut" / "output" / "fields" / "result.json").read_text())
    assert len(report["epochs"]) == 3


def test_pairs_whose_making_is_killed_leave_the_earlier_store(place, tmp_path):
    words = ["--reference", place / "sections.npz", "--output", tmp_path / "pairs", *MOVES]
    assert run("make-pairs", *words, "--make_pairs#count", 2) == 0
    before = (tmp_path / "pairs.h5").read_bytes()
    begun = ["make-pairs", *words, "--make_pairs#count", "20000"]
    killed(begun, lambda: bool(list(tmp_path.glob(".*pairs.h5"))), later=0.2)
    assert (tmp_path / "pairs.h5").read_bytes() == before
    assert list(tmp_path.glob(".*pairs.h5"))
    assert run("make-pairs", *words, "--make_pairs#count", 3) == 0
    assert not list(tmp_path.glob(".*pairs.h5"))
    with h5py.File(tmp_path / "pairs.h5") as store:
        assert len(store["img"]) == 3


# -- refusals --------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], verb: str, *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run(verb, *words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return code, errors[0]


def test_bad_stores_and_settings_end_with_one_line_and_their_code(place, tmp_path, capsys):
    there = ("--output_dir", tmp_path / "o", "--ckpt_dir", tmp_path / "m", *SMALL)
    with h5py.File(place / "train.h5") as store:
        content = {name: store[name][...] for name in store}
    content["deltas_xy"][3, 0, 0, 0] = np.inf
    with h5py.File(tmp_path / "inf.h5", "w") as file:
        for name, value in content.items():
            file[name] = value
    for words, code, message in (
        (("--pairs", tmp_path / "none.h5"), 3, "none.h5: can't be read"),
        (("--pairs", tmp_path / "inf.h5"), 3, "deltas_xy[3]"),
        (("--pairs", ""), 2, "train_fields.pairs = '': is missing"),
        (("--pairs", tmp_path / "none.h5", "--train_fields#losses",
          "['perceptual_loss_net-lin_vgg', 'mae']"), 2, "needs a weights file"),
        (("--pairs", place / "train.h5", "--train_fields#losses", "['foo', 'mae']"), 2, "'foo'"),
        (("--pairs", place / "train.h5", "--train_fields#network", "merged"), 6,
         "fields_global.pt: no such checkpoint"),
        (("--pairs", place / "train.h5", "--train_fields#network", "local",
          "--train_fields#global_model", tmp_path / "none.pt"), 6, "no such checkpoint"),
    ):  # fmt: skip
        result, error = refused(capsys, "train-fields", *there, *words)
        assert (result, message in error) == (code, True), error
    assert not (tmp_path / "m").exists()
    result, error = refused(capsys, "make-pairs", "--output", tmp_path / "x")
    assert (result, "needs either reference or atlas_dir" in error) == (2, True)
    assert not (tmp_path / "x.h5").exists()


def test_an_existing_network_is_kept_where_overwrite_is_false(place, tmp_path, capsys):
    assert trained(place, tmp_path, "global", 1) == 0
    before = (tmp_path / "models" / "fields_global.pt").read_bytes()
    code = trained(place, tmp_path, "global", 1, "--train_fields#overwrite", "false")
    assert code == 7
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "models" / "fields_global.pt").read_bytes() == before


def test_other_settings_do_not_continue_an_unfinished_run(place, tmp_path, capsys):
    assert trained(place, tmp_path, "global", 1) == 0
    report = json.loads((tmp_path / "output" / "fields" / "result.json").read_text())
    settings = TrainFieldsConfig.load(report["settings"])
    state = RunState(  # as a run that was killed leaves it
        tmp_path / "models" / "fields_global_run_state", settings, open_field_pairs(settings)
    )
    state.training.write_bytes(b"")
    assert trained(place, tmp_path, "global", 1, "--train_fields#optimizer#lr", 0.5) == 6
    error = capsys.readouterr().err
    assert "train_fields.optimizer.lr was 0.001, now 0.5" in error
    assert "--train_fields#resume false" in error


def test_a_loss_that_is_not_finite_ends_the_run(place, tmp_path, capsys):
    code = trained(place, tmp_path, "global", 40, "--train_fields#optimizer#lr", 1e20)
    assert code == 4
    assert "--train_fields#optimizer#lr" in capsys.readouterr().err
    assert not (tmp_path / "models" / "fields_global.pt").exists()


# -- MONAI's own command ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "run_id", "kind"),
    [("train_fields", "training", "train"), ("predict_fields", "predicting", "inference")],
)
def test_monai_finds_all_that_it_expects(place, tmp_path, config, run_id, kind):
    device = {"train_fields#device": "cpu"} if kind == "train" else {"device_name": "cpu"}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / f"configs/{config}.yaml"),
        meta_file=str(ROOT / "configs/metadata.json"),
        logging_file=str(ROOT / "configs/logging.conf"),
        run_id=run_id, workflow_type=kind, bundle_root=str(ROOT), pairs=str(place / "test.h5"),
        ckpt_dir=str(tmp_path if kind == "train" else place / "models"),
        output_dir=str(tmp_path), **device,
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() in (None, [])
