"""Networks trained, then asked about a pair of images, by the commands that users type."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle import cli
from scripts.affine.inference import estimate_matrix, load_affine_network
from scripts.elastic.network import load_elastic_network, on_image_grid
from scripts.errors import FoldingError
from scripts.pairwise.network_grid import WorkingGrid
from scripts.registration.pair_output import require_no_fold
from scripts.spatial.transform_files import TransformFile, read_affine, read_transform
from scripts.spatial.transforms import resample
from scripts.spatial.volumes import read_volume

ROOT = Path(__file__).resolve().parents[2]
OFF = (2.0, -1.5, 1.5)
"""Where the moving image lies in the world, mm."""


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def phantom(affine: np.ndarray, shape: tuple[int, ...], shift: float) -> np.ndarray:
    """Two labelled bodies in the world's millimetres: 1 around 2."""
    indices = np.mgrid[tuple(slice(n) for n in shape)].reshape(3, -1)
    x, y, z = affine[:3, :3] @ indices + affine[:3, 3:]
    outer = (x / 13) ** 2 + (y / 10) ** 2 + (z / 9) ** 2 < 1
    inner = ((x - 4 - shift) / 6) ** 2 + ((y + shift) / 4) ** 2 + (z / 4) ** 2 < 1
    return (outer.astype(np.uint8) + inner).reshape(shape)


def grid(spacing: tuple[float, ...], shape: tuple[int, ...], turn: float = 0.0) -> np.ndarray:
    """Centred near the world's origin; turned about the third axis."""
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.eye(4)
    rotation[:2, :2] = [[c, -s], [s, c]]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * np.array(spacing)
    return rotation @ affine


def trained(kind: str, cohort: Path, folder: Path, **optimizer: float) -> int:
    """Status of one epoch on images and their labels, below a folder."""
    block = f"--learned_{kind}"
    values = {"epochs": 1, **optimizer}.items()
    return run(
        f"train-{kind}", "--dataset_dir", cohort, "--output_dir", folder / "training",
        "--ckpt_dir", folder / "models", f"{block}#device", "cpu", f"{block}#folds", 2,
        f"{block}#images#pattern", "images/{subject}.nii.gz",
        f"{block}#images#labels", "masks/seg_{subject}.nii.gz",
        f"{block}#images#shape", "[16,16,16]",
        *(word for name, one in values for word in (f"{block}#optimizer#{name}", one)),
        *([f"{block}#images#kind", "labels"] if kind == "elastic" else []),
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps, images of two contrasts on different grids, and both networks' checkpoints."""
    root = tmp_path_factory.mktemp("pairs")
    for kind in ("images", "masks"):
        (root / "cohort" / kind).mkdir(parents=True)
    shape = (20, 18, 16)
    affine = grid((2.0, 2.0, 2.0), shape)
    for number in range(4):
        volume = phantom(affine, shape, number - 1.0)
        image = np.array((0, 3, 7), np.float32)[volume]
        nib.save(nib.Nifti1Image(image, affine), root / f"cohort/images/s{number}.nii.gz")
        nib.save(nib.Nifti1Image(volume, affine), root / f"cohort/masks/seg_s{number}.nii.gz")
    for name, spacing, size, turn, shift, shades, off in (
        ("fixed", (1.5, 1.5, 2.5), (26, 22, 12), 0.3, 1.0, (0, 3, 7), (0.0, 0.0, 0.0)),
        ("moving", (2.2, 1.8, 1.6), (18, 20, 18), -0.2, -1.0, (0, 6, 2), OFF),
    ):
        own = grid(spacing, size, turn)
        image = np.array(shades, np.float32)[phantom(own, size, shift)]
        own[:3, 3] += off
        nib.save(nib.Nifti1Image(image, own), root / f"{name}.nii.gz")
    for kind in ("affine", "elastic"):
        code = trained(kind, root / "cohort", root, pairs_per_subject=1)
        assert code == 0
    # So few steps move next to nothing: the rest of these tests needs something to see, and no
    # field is written that makes a pair less similar. The moving image lies 3 mm off.
    state = torch.load(root / "models" / "elastic_model.pt", weights_only=True)
    weight = state["unet.field.weight"]
    generator = torch.Generator().manual_seed(0)
    state["unet.field.weight"] = 0.2 * torch.randn(weight.shape, generator=generator)
    spacing = load_elastic_network(root / "models" / "elastic_model.pt").grid.spacing
    state["unet.field.bias"] = torch.tensor(OFF) / spacing
    torch.save(state, root / "models" / "elastic_model.pt")
    return root


@pytest.mark.parametrize("kind", ["affine", "elastic"])
def test_label_dice_of_real_images_is_in_the_results(place, kind):
    report = json.loads((place / "training" / kind / "result.json").read_text())
    assert len(report["held_out"]) == 2
    assert report["metrics"]["label_pairs"] == 2
    before, after = (report["metrics"][f"label_dice{when}"] for when in ("_before", ""))
    assert 0.5 < before < 1
    assert abs(after - before) < 0.3  # hardly trained


def test_no_fold_by_both_commands(place, tmp_path, run_bundle, refused):
    """All subjects are trained on; MONAI's command would drop ``None`` and hold out fold 0."""
    folders = {name: tmp_path / name for name in ("monai", "ours")}
    words = [
        "--dataset_dir", place / "cohort/images", "--learned_affine#device", "cpu",
        "--learned_affine#images#layout", "flat", "--learned_affine#images#shape", "[16,16,16]",
        "--learned_affine#optimizer#epochs", 1, "--learned_affine#optimizer#pairs_per_subject", 1,
    ]  # fmt: skip
    there = {
        name: ["--output_dir", folder, "--ckpt_dir", folder] for name, folder in folders.items()
    }
    assert run("train-affine", *words, *there["ours"], "--fold", "None") == 0
    result = run_bundle("training", "train_affine", *words, *there["monai"], "--fold", "null")
    assert result.returncode == 0, result.stderr
    for folder in folders.values():
        report = json.loads((folder / "affine" / "result.json").read_text())
        assert report["fold"] is None
        assert report["trained_on"] == ["s0", "s1", "s2", "s3"]
        assert report["held_out"] == []
    result = run_bundle("training", "train_affine", *words, *there["monai"], "--fold", "None")
    refused(result, 2, "--fold None: MONAI's command drops None", "must be --fold null")


def asked(place: Path, output: Path, verb: str, *more: object) -> int:
    return run(
        verb, "--fixed", place / "fixed.nii.gz", "--moving", place / "moving.nii.gz",
        "--ckpt_dir", place / "models", "--output_dir", output, "--device_name", "cpu", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def estimated(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("estimated")
    assert asked(place, output, "estimate-affine") == 0
    return output / "estimated" / "moving"


@pytest.fixture(scope="module")
def registered(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("registered")
    assert asked(place, output, "register-elastic") == 0
    return output / "registered_elastic" / "moving"


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def warped(image: Path, reference: Path, *chain: Path) -> np.ndarray:
    volume, source = read_volume(image)
    transforms = [read_transform(TransformFile(path)) for path in chain]
    return resample(volume, source, transforms, read_volume(reference)[1])[0]


def test_an_estimate_is_the_networks_and_its_files_give_both_moved_images(place, estimated):
    network = load_affine_network(place / "models" / "affine_model.pt")
    fixed, moving = (nib.load(place / f"{name}.nii.gz") for name in ("fixed", "moving"))
    wanted = estimate_matrix(
        network, fixed.get_fdata(), fixed.affine, moving.get_fdata(), moving.affine
    ).numpy()
    assert np.abs(wanted - np.eye(4)).max() > 1e-4
    about = json.loads((estimated / "estimated.json").read_text())
    np.testing.assert_allclose(about["matrix_fixed_to_moving_ras_mm"], wanted, atol=1e-5)
    stem = "moving_from-{}_to-{}_mode-image_xfm"
    forward, backward = (stem.format(*way) for way in (("moving", "fixed"), ("fixed", "moving")))
    for name, matrix in ((forward, wanted), (backward, np.linalg.inv(wanted))):
        for ending in (".txt", "_ras.txt"):
            result = read_affine(estimated / f"{name}{ending}").matrix
            np.testing.assert_allclose(result, matrix, atol=1e-5)
    images = place / "moving.nii.gz", place / "fixed.nii.gz"
    again = warped(images[0], images[1], estimated / f"{forward}.txt")
    np.testing.assert_allclose(again, values(estimated / "moving_in_fixed.nii.gz"), atol=1e-4)
    again = warped(images[1], images[0], estimated / f"{backward}.txt")
    np.testing.assert_allclose(again, values(estimated / "fixed_in_moving.nii.gz"), atol=1e-4)


def test_registered_fields_do_not_fold_and_lead_there_and_back(place, registered):
    about = json.loads((registered / "registered.json").read_text())
    assert min(one["corner_min"] for one in about["jacobian"].values()) > 0
    assert about["displacement_rms_mm"] > 0.5
    forward, inverse = (
        read_transform(TransformFile(registered / f"moving_{way}_field.nii.gz"))
        for way in ("forward", "inverse")
    )
    affine = nib.load(place / "fixed.nii.gz").affine
    inside = np.mgrid[5:21:4, 5:17:4, 3:9:2].reshape(3, -1)
    points = affine[:3, :3] @ inside + affine[:3, 3:]
    moved = forward.apply(points)
    assert np.abs(moved - points).max() > 0.5
    np.testing.assert_allclose(inverse.apply(moved), points, atol=0.25)


def test_registered_files_give_both_moved_images(place, registered):
    fixed, moving = place / "fixed.nii.gz", place / "moving.nii.gz"
    there = registered / "moving_from-moving_to-fixed_mode-image_xfm.txt"
    back = registered / "moving_from-fixed_to-moving_mode-image_xfm.txt"
    again = warped(moving, fixed, registered / "moving_forward_field.nii.gz", there)
    np.testing.assert_allclose(again, values(registered / "moving_in_fixed.nii.gz"), atol=1e-3)
    again = warped(fixed, moving, back, registered / "moving_inverse_field.nii.gz")
    np.testing.assert_allclose(again, values(registered / "fixed_in_moving.nii.gz"), atol=1e-3)


def assert_ants_reads_alike(fixed: Path, moving: Path, registered: Path) -> None:
    """Both moved images by antsApplyTransforms, from the written chains."""
    ants = pytest.importorskip("ants")
    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    there = registered / "moving_from-moving_to-fixed_mode-image_xfm.txt"
    back = registered / "moving_from-fixed_to-moving_mode-image_xfm.txt"
    fields = [registered / f"moving_{way}_field.nii.gz" for way in ("forward", "inverse")]
    for wanted, given, chain, name in (
        (images[0], images[1], (fields[0], there), "moving_in_fixed"),
        (images[1], images[0], (back, fields[1]), "fixed_in_moving"),
    ):
        result = ants.apply_transforms(wanted, given, [str(path) for path in chain]).numpy()
        ours = values(registered / f"{name}.nii.gz")
        # ANTs leaves 0 where a point lies up to half a voxel outside; we fade there.
        same = result != 0
        assert same.mean() > 0.1
        np.testing.assert_allclose(result[same], ours[same], atol=1e-3 * float(ours.max()))


def test_ants_reads_registered_fields_as_we_do(place, registered):
    assert_ants_reads_alike(place / "fixed.nii.gz", place / "moving.nii.gz", registered)


def test_an_affine_start_comes_before_the_network(place, registered, tmp_path):
    start = grid((1.0, 1.0, 1.0), (1, 1, 1), 0.35)
    start[:3, 3] = (6.0, -2.0, 3.0)
    np.savetxt(tmp_path / "moving.txt", start)
    shifted = nib.load(place / "moving.nii.gz")
    (tmp_path / "in").mkdir()
    nib.save(
        nib.Nifti1Image(np.asarray(shifted.dataobj), start @ shifted.affine),
        tmp_path / "in" / "moving.nii.gz",
    )
    code = asked(
        place, tmp_path, "register-elastic", "--moving", tmp_path / "in" / "moving.nii.gz",
        "--register_elastic#start", tmp_path / "{name}.txt",
    )  # fmt: skip
    assert code == 0
    result = tmp_path / "registered_elastic" / "moving"
    ours = read_affine(result / "moving_from-moving_to-fixed_mode-image_xfm.txt").matrix
    np.testing.assert_allclose(ours, start, atol=1e-9)
    for name in ("moving_forward_field", "moving_in_fixed"):
        np.testing.assert_allclose(
            values(result / f"{name}.nii.gz"), values(registered / f"{name}.nii.gz"), atol=1e-3
        )
    assert_ants_reads_alike(place / "fixed.nii.gz", tmp_path / "in" / "moving.nii.gz", result)


@pytest.mark.parametrize("verb", ["estimate-affine", "register-elastic"])
def test_pairs_without_sense_are_one_line_and_leave_nothing(place, tmp_path, verb, capsys):
    flat = nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4))
    nib.save(flat, tmp_path / "flat.nii.gz")
    output = tmp_path / "output"
    assert asked(place, output, verb, "--moving", tmp_path / "flat.nii.gz") == 3
    assert "constant" in (error := capsys.readouterr().err) or "same value" in error
    assert asked(place, output, verb, "--moving", tmp_path / "none.nii.gz") == 3
    assert "none.nii.gz" in capsys.readouterr().err
    # Without a trained elastic network, register-elastic takes the one that ships unless told.
    trained = () if "affine" in verb else ("--register_elastic#network", "trained")
    assert asked(place, output, verb, "--ckpt_dir", tmp_path, *trained) == 6
    assert "no such checkpoint" in capsys.readouterr().err
    assert not any(output.glob("*/*"))
    other = "elastic" if "affine" in verb else "affine"
    kind = "affine" if "affine" in verb else "elastic"
    (tmp_path / f"{kind}_model.pt").write_bytes(
        (place / "models" / f"{other}_model.pt").read_bytes()
    )
    assert asked(place, output, verb, "--ckpt_dir", tmp_path) == 6
    assert f"{kind}_model.pt: contains no {kind} network" in capsys.readouterr().err


def test_images_that_share_no_space_are_reported(place, tmp_path, caplog, capsys):
    """An elastic network can't bring them together; an affine one lays their centres together."""
    image = nib.load(place / "moving.nii.gz")
    away = image.affine.copy()
    away[:3, 3] += 900
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), away), tmp_path / "away.nii.gz")
    output = tmp_path / "output"
    assert asked(place, output, "register-elastic", "--moving", tmp_path / "away.nii.gz") == 3
    error = capsys.readouterr().err
    assert "away.nii.gz: shares no space with" in error and "register_elastic#start" in error
    assert not any(output.glob("*/*"))
    code = asked(place, output, "estimate-affine", "--moving", tmp_path / "away.nii.gz")
    assert code == 0
    log = caplog.text + capsys.readouterr().out
    assert "away.nii.gz: shares no space with" in log


def test_an_affine_estimate_worse_than_none_is_not_written(place, tmp_path, capsys):
    """The same network, whose parameters are 0.6 rad about each axis for any pair."""
    path = place / "models" / "affine_model.pt"
    state = torch.load(path, weights_only=True)
    last = next(name for name in reversed(state) if name.endswith("bias"))
    state[last] = torch.tensor([0.6, 0.6, 0.6, *[0.0] * 9])
    torch.save(state, tmp_path / "affine_model.pt")
    assert asked(place, tmp_path, "estimate-affine", "--ckpt_dir", tmp_path) == 3
    output = capsys.readouterr().err
    assert "moving.nii.gz: the network's estimate makes it less similar to" in output
    assert "so it isn't written" in output
    assert not any((tmp_path / "estimated").glob("*"))


def test_a_field_worse_than_none_is_left_out(place, tmp_path, caplog, capsys):
    """The same network, whose constant field leads away from the moving image."""
    path = place / "models" / "elastic_model.pt"
    state = torch.load(path, weights_only=True)
    state["unet.field.bias"] = -state["unet.field.bias"]
    torch.save(state, tmp_path / "elastic_model.pt")
    assert asked(place, tmp_path, "register-elastic", "--ckpt_dir", tmp_path) == 0
    assert "the network would not improve this pair" in caplog.text + capsys.readouterr().out
    folder = tmp_path / "registered_elastic" / "moving"
    assert np.all(values(folder / "moving_forward_field.nii.gz") == 0)
    assert json.loads((folder / "registered.json").read_text())["displacement_rms_mm"] == 0
    still = warped(place / "moving.nii.gz", place / "fixed.nii.gz")
    np.testing.assert_allclose(still, values(folder / "moving_in_fixed.nii.gz"), atol=1e-4)


@pytest.mark.parametrize("kind", ["affine", "elastic"])
def test_a_training_worse_than_none_writes_no_network(place, tmp_path, kind, capsys):
    """By a learning rate that no training survives."""
    code = trained(kind, place / "cohort", tmp_path, lr=3.0, pairs_per_subject=8)
    assert code == 4
    assert "the network is worse than none on held-out pairs" in capsys.readouterr().err
    assert not (tmp_path / "models" / f"{kind}_model.pt").exists()
    assert not (tmp_path / "training" / kind / "result.json").exists()


def test_refine_starts_from_a_trained_network_and_is_never_worse(place, registered, tmp_path):
    """Its first loss is that of the network's own field, and the field stays if no step helps."""
    losses = {}
    for name, start in (
        ("plain", ()),
        ("network", ("--refine#elastic_start", place / "models" / "elastic_model.pt")),
        ("field", ("--refine#elastic_start", registered / "{name}_forward_field.nii.gz")),
    ):
        code = run(
            "refine", "--refine#fixed", place / "fixed.nii.gz", "--refine#moving",
            place / "moving.nii.gz", "--refine#mode", "elastic", "--refine#contrast", "auto",
            "--refine#levels", "[2]", "--refine#iterations", 5, "--output_dir", tmp_path / name,
            *start,
        )  # fmt: skip
        assert code == 0
        about = json.loads((tmp_path / name / "refined" / "moving" / "refined.json").read_text())
        losses[name] = about["steps"]["elastic"]
        assert losses[name]["loss"] <= losses[name]["start_loss"]
    assert losses["network"]["start_loss"] < losses["plain"]["start_loss"]
    assert losses["network"]["start_loss"] == pytest.approx(losses["field"]["start_loss"], abs=0.01)


def test_refine_refuses_a_file_that_is_no_network_of_pairs(place, tmp_path, capsys):
    words = (
        "refine", "--refine#fixed", place / "fixed.nii.gz", "--refine#moving",
        place / "moving.nii.gz", "--refine#mode", "elastic", "--output_dir", tmp_path / "output",
    )  # fmt: skip
    assert run(*words, "--refine#elastic_start", place / "models" / "affine_model.pt") == 6
    assert "affine_model.pt: contains no elastic network" in capsys.readouterr().err
    assert run(*words, "--refine#elastic_start", tmp_path / "none.pt") == 6
    assert "none.pt" in capsys.readouterr().err
    assert not any(tmp_path.glob("output/*/*"))


@pytest.mark.parametrize(
    ("config", "run_id"), [("estimate_affine", "estimating"), ("register_elastic", "registering")]
)
def test_monai_finds_all_that_it_expects_of_an_inference(place, tmp_path, config, run_id):
    workflow = ConfigWorkflow(
        config_file=str(ROOT / f"configs/{config}.yaml"),
        meta_file=str(ROOT / "configs/metadata.json"),
        logging_file=str(ROOT / "configs/logging.conf"),
        run_id=run_id, workflow_type="inference", bundle_root=str(ROOT),
        fixed=str(place / "fixed.nii.gz"), moving=[str(place / "moving.nii.gz")],
        ckpt_dir=str(place / "models"), output_dir=str(tmp_path), device_name="cpu",
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() in (None, [])


def test_a_field_that_folds_is_refused():
    sound = {"min": 0.4, "corner_min": 0.2}
    require_no_fold("a.nii.gz", {"displacement": sound, "inverse": sound}, "smooth")
    for value in (0.0, -0.1, float("nan")):
        broken = {**sound, "corner_min": value}
        with pytest.raises(FoldingError, match=r"a\.nii\.gz: its field folds .*; smooth"):
            require_no_fold("a.nii.gz", {"displacement": sound, "inverse": broken}, "smooth")


@pytest.mark.parametrize("d", [2, 3])
def test_a_field_keeps_its_millimetres_on_an_oblique_anisotropic_grid(d):
    """A displacement that is linear in the world is carried over exactly."""
    network, shape = WorkingGrid((20, 18, 22)[:d], 2.0), (14, 12, 9)[:d]
    affine = grid((1.5, -2.5, 3.0), (14, 12, 9), 0.4)
    affine[:3, 3] += (30, -20, 10)
    generator = np.random.default_rng(0)
    slope, shift = 0.1 * generator.normal(size=(d, d)), generator.normal(size=d)
    voxels = np.mgrid[tuple(slice(n) for n in network.shape)].reshape(d, -1)
    local = network.affine[:d, :d] @ voxels + network.affine[:d, 3:]
    moves = (slope @ local + shift[:, None]) / network.spacing
    field = torch.from_numpy(moves.reshape(1, d, *network.shape)).double()
    result = on_image_grid(field, network, affine, shape)[0].numpy().reshape(d, -1)
    place = network.place_of(affine, shape).numpy()
    indices = np.mgrid[tuple(slice(n) for n in shape)].reshape(d, -1)
    world = affine[:3, :d] @ indices + affine[:3, 3:]
    there = np.linalg.inv(place)
    own = (there[:3, :3] @ world + there[:3, 3:])[:d]
    inside = np.all(np.abs(own) < network.spacing * (np.array(network.shape)[:, None] - 1) / 2, 0)
    assert inside.all()
    wanted = place[:3, :d] @ (slope @ own + shift[:, None])
    np.testing.assert_allclose(affine[:3, :d] @ result, wanted, atol=1e-6)
