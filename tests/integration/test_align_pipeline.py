"""Native cohort to aligned dataset, pairs refined, chains applied once: as a user runs them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from warm_process import run_code

from bundle import cli
from scripts.cohort import read_cohort
from scripts.errors import CheckpointError
from scripts.registration.affine import AffineRefinement
from scripts.registration.align_state import KeptTransforms
from scripts.registration.group_mean import group_mean
from scripts.registration.images import ReadImage
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.affine_parameters import Frame, matrix_of
from scripts.spatial.transform_files import read_affine

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(16, 18, 14), (18, 16, 16), (16, 16, 16)]


def density(points: np.ndarray) -> np.ndarray:
    """Two bumps in the object's millimetres."""
    total = np.zeros(points.shape[1])
    for centre, radii in (((0, 0, 0), (9, 6, 5)), ((7, 4, 2), (4, 4, 4)), ((-4, -5, 3), (4, 3, 3))):
        away = (points - np.array(centre)[:, None]) / np.array(radii, dtype=float)[:, None]
        total += np.exp(-(away**2).sum(0))
    return total


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects on three grids, with labels and a waytotal."""
    root = tmp_path_factory.mktemp("native")
    generator = torch.Generator().manual_seed(3)
    for number, shape in enumerate(SHAPES):
        spacing = np.array([2.0, 2.2, 2.4]) - 0.1 * number
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing + number
        drawn = torch.rand(1, 12, generator=generator, dtype=torch.float64) - 0.5
        weights = torch.tensor([0.5] * 3 + [0.15] * 3 + [0.15] * 6)
        matrix = matrix_of(drawn * weights, "affine", Frame.of_grid(affine, shape))[0].numpy()
        indices = np.mgrid[tuple(slice(n) for n in shape)].reshape(3, -1)
        points = affine[:3, :3] @ indices + affine[:3, 3:]
        values = density(matrix[:3, :3] @ points + matrix[:3, 3:]).reshape(shape)
        folder = root / f"sub-{number}"
        folder.mkdir()
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), folder / "tdi.nii.gz")
        nib.save(nib.Nifti1Image((values > 0.5).astype(np.uint8), affine), folder / "mask.nii.gz")
        (folder / "waytotal").write_text("1000\n")
    return root


def run(*words: str) -> int:
    return cli.main([str(word) for word in words])


OPTIONS = (
    "--align#image", "{subject}/tdi.nii.gz", "--align#labels", "['{subject}/mask.nii.gz']",
    "--align#levels", "[2,1]", "--align#iterations", "20", "--align#rounds", "2",
    "--align#similarity", "correlation", "--align#log_offset", "0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def aligned(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output")
    assert run("align", "--dataset_dir", native, "--output_dir", output, *OPTIONS) == 0
    return output / "aligned"


def test_the_cohort_is_centred_and_trains_as_affine_native(aligned: Path) -> None:
    about = json.loads((aligned / "alignment.json").read_text())
    matrices = np.array([one["matrix"] for one in about["subjects"]])
    np.testing.assert_allclose(group_mean(matrices), np.eye(4), atol=1e-7)
    assert min(one["correlation"] for one in about["subjects"]) > 0.95
    settings = LearnedAtlasConfig.load(
        {
            "training_space": "affine_native",
            "affine_native_relpath": "tdi.nii.gz",
            "min_subjects": 3,
        }
    )
    cohort = read_cohort(aligned, settings.cohort_request())
    assert [subject.name for subject in cohort.subjects] == ["sub-0", "sub-1", "sub-2"]


DIE_AT_THE_SIXTH = """
import os, signal, sys
from bundle import cli
from scripts.registration.align_state import KeptTransforms

calls, kept = [], KeptTransforms.__call__

def counted(self, *given):
    calls.append(given)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(self, *given)

KeptTransforms.__call__ = counted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_alignment_resumes_to_the_same_result_bit_for_bit(
    native: Path,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(w) for w in ("align", "--dataset_dir", native, "--output_dir", tmp_path, *OPTIONS)]
    died = run_code(DIE_AT_THE_SIXTH, words, ROOT, os.environ)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = tmp_path / ".aligned.unfinished"
    # Two of the first step, three of the first round; the fourth of its kind was never begun.
    assert len(list(left.glob("round-*/*.json"))) == 5
    assert not (tmp_path / "aligned").exists()

    assert run(*words, "--align#family", "rigid") == 6
    error = capsys.readouterr().err
    assert "align.family was 'affine', now 'rigid'" in error
    assert "--align#resume false" in error

    runs, refine = [], AffineRefinement.__call__

    def counted(self, *given):
        runs.append(self.family)
        return refine(self, *given)

    monkeypatch.setattr(AffineRefinement, "__call__", counted)
    assert run(*words) == 0
    assert runs == ["affine"] * 3  # the second round alone
    assert not left.exists()
    for name in ("template.nii.gz", "sub-0/tdi.nii.gz", "sub-1/mask.nii.gz"):
        one, other = (nib.load(folder / name) for folder in (aligned, tmp_path / "aligned"))
        np.testing.assert_array_equal(one.affine, other.affine)
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    one, other = (
        json.loads((folder / "alignment.json").read_text())
        for folder in (aligned, tmp_path / "aligned")
    )
    assert one["subjects"] == other["subjects"]
    assert one["loss_by_round"] == other["loss_by_round"]


def test_a_damaged_transform_of_an_unfinished_alignment_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "round-000" / "000001.json"
    path.parent.mkdir()
    path.write_text('{"matrix": [[1]], "loss": 0}')
    with pytest.raises(CheckpointError, match=r"000001\.json: damaged .*--align#resume false"):
        KeptTransforms(tmp_path)(0, 1, lambda: (np.eye(4), 0.0))


def test_labels_stay_labels_and_lie_upon_each_other(aligned: Path) -> None:
    masks = [nib.load(aligned / f"sub-{n}" / "mask.nii.gz") for n in range(3)]
    assert {mask.get_data_dtype() for mask in masks} == {np.dtype(np.uint8)}
    first, *others = [np.asarray(mask.dataobj) > 0 for mask in masks]
    for other in others:
        assert 2 * (first & other).sum() / (first.sum() + other.sum()) > 0.75


def test_transforms_are_written_in_both_directions(aligned: Path) -> None:
    about = json.loads((aligned / "alignment.json").read_text())
    for one in about["subjects"]:
        there, there_ras, back, back_ras = (
            read_affine(aligned / one["subject"] / "xfm" / name).matrix
            for name in one["transforms"]
        )
        np.testing.assert_allclose(there, one["matrix"], atol=1e-9)
        np.testing.assert_allclose(there_ras, there, atol=1e-9)
        np.testing.assert_allclose(there @ back, np.eye(4), atol=1e-9)
        np.testing.assert_allclose(back_ras, back, atol=1e-9)


def test_one_warp_through_the_written_transform_is_the_aligned_map(
    native: Path, aligned: Path, tmp_path: Path
) -> None:
    xfm = aligned / "{subject}" / "xfm" / "{subject}_from-native_to-aligned_mode-image_xfm.txt"
    words = (
        "warp", "--output_dir", tmp_path, "--warp#subjects", "['sub-1']",
        "--warp#image", native / "{subject}" / "tdi.nii.gz",
        "--warp#reference", aligned / "template.nii.gz",
        "--warp#transforms", f"['{xfm}']",
    )  # fmt: skip
    assert run(*words) == 0
    result = nib.load(tmp_path / "warped" / "sub-1" / "tdi.nii.gz").get_fdata()
    wanted = nib.load(aligned / "sub-1" / "tdi.nii.gz").get_fdata()
    np.testing.assert_allclose(result, wanted, atol=1e-4)


def test_a_template_comes_back_to_the_subjects_own_grid(native: Path, aligned: Path) -> None:
    own = nib.load(native / "sub-2" / "tdi.nii.gz")
    back = nib.load(aligned / "sub-2" / "template_in_native.nii.gz")
    assert back.shape == own.shape
    np.testing.assert_allclose(back.affine, own.affine, atol=1e-6)
    assert np.corrcoef(back.get_fdata().ravel(), own.get_fdata().ravel())[0, 1] > 0.95


def test_new_subjects_join_an_earlier_template(native: Path, aligned: Path, tmp_path: Path) -> None:
    words = (
        "--align#target", aligned / "template.nii.gz", "--align#subjects", "['sub-0']",
        "--align#min_subjects", "1",
    )  # fmt: skip
    assert run("align", "--dataset_dir", native, "--output_dir", tmp_path, *OPTIONS, *words) == 0
    new = nib.load(tmp_path / "aligned" / "sub-0" / "tdi.nii.gz")
    old = nib.load(aligned / "sub-0" / "tdi.nii.gz")
    assert new.shape == old.shape
    assert np.corrcoef(new.get_fdata().ravel(), old.get_fdata().ravel())[0, 1] > 0.97


def test_a_pair_is_refined_and_its_files_give_the_moved_image(native: Path, tmp_path: Path) -> None:
    words = (
        "refine", "--output_dir", tmp_path, "--refine#fixed", native / "sub-0" / "tdi.nii.gz",
        "--refine#moving", f"['{native / 'sub-1' / 'tdi.nii.gz'}']", "--refine#mode", "joint",
        "--refine#levels", "[2,1]", "--refine#iterations", "10",
    )  # fmt: skip
    assert run(*words) == 0
    folder = tmp_path / "refined" / "tdi"
    about = json.loads((folder / "refined.json").read_text())
    assert about["steps"]["affine"]["loss"] <= about["steps"]["affine"]["start_loss"]
    assert about["steps"]["elastic"]["loss"] <= about["steps"]["elastic"]["start_loss"]
    affine = folder / "tdi_from-moving_to-fixed_mode-image_xfm.txt"
    chain = f"['{folder}/tdi_forward_field.nii.gz', '{affine}']"
    again = (
        "warp", "--output_dir", tmp_path, "--warp#subjects", "['sub-1']",
        "--warp#image", native / "{subject}" / "tdi.nii.gz",
        "--warp#reference", native / "sub-0" / "tdi.nii.gz", "--warp#transforms", chain,
    )  # fmt: skip
    assert run(*again) == 0
    moved = nib.load(folder / "moving_in_fixed.nii.gz").get_fdata()
    warped = nib.load(tmp_path / "warped" / "sub-1" / "tdi.nii.gz").get_fdata()
    np.testing.assert_allclose(warped, moved, atol=1e-3)
    fixed = nib.load(native / "sub-0" / "tdi.nii.gz").get_fdata()
    assert np.corrcoef(moved.ravel(), fixed.ravel())[0, 1] > 0.97


def test_planes_are_aligned_and_refined_as_volumes_are(tmp_path: Path) -> None:
    for number, shape in enumerate(((20, 24), (22, 20), (24, 21))):
        affine = np.diag([2.0 - 0.1 * number, 1.8, 1.0, 1.0])
        affine[:2, 3] = -(np.array(shape) - 1) / 2 * affine.diagonal()[:2]
        indices = np.mgrid[tuple(slice(n) for n in shape)].reshape(2, -1)
        points = np.zeros((3, indices.shape[1]))
        angle = 0.2 * number
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points[:2] = turn @ (affine[:2, :2] @ indices + affine[:2, 3:]) + number
        (tmp_path / "data" / f"s{number}").mkdir(parents=True)
        image = nib.Nifti1Image(density(points).reshape(shape).astype(np.float32), affine)
        nib.save(image, tmp_path / "data" / f"s{number}" / "map.nii.gz")
    words = ("--output_dir", tmp_path, "--{}#levels", "[2,1]", "--{}#iterations", "20")
    align = [str(word).format("align") for word in words]
    data = ("--dataset_dir", tmp_path / "data", "--align#image", "{subject}/map.nii.gz")
    assert run("align", *data, *align, "--align#rounds", "1") == 0
    about = json.loads((tmp_path / "aligned" / "alignment.json").read_text())
    assert min(one["correlation"] for one in about["subjects"]) > 0.95
    matrices = np.array([one["matrix"] for one in about["subjects"]])
    np.testing.assert_allclose(matrices[:, 2], [[0, 0, 1, 0]] * 3, atol=1e-12)
    first, last = (tmp_path / "data" / f"s{number}" / "map.nii.gz" for number in (0, 2))
    pair = ("--refine#fixed", first, "--refine#moving", last, "--refine#mode", "joint")
    assert run("refine", *pair, *[str(word).format("refine") for word in words]) == 0
    folder = tmp_path / "refined" / "map"
    text = (folder / "map_from-moving_to-fixed_mode-image_xfm.txt").read_text()
    assert "AffineTransform_double_2_2" in text
    fixed, moved = (nib.load(p).get_fdata() for p in (first, folder / "moving_in_fixed.nii.gz"))
    assert np.corrcoef(fixed.ravel(), moved.ravel())[0, 1] > 0.98


def test_who_cannot_be_aligned_is_left_out_or_ends_the_run(
    native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "data"
    (dataset / "flat").mkdir(parents=True)
    flat = nib.Nifti1Image(np.full((8, 8, 8), 2, np.float32), np.eye(4))
    nib.save(flat, dataset / "flat" / "tdi.nii.gz")
    words = ("--dataset_dir", dataset, "--output_dir", tmp_path / "out")
    assert run("align", *words, "--align#image", "{subject}/tdi.nii.gz") == 3
    error = capsys.readouterr().err
    assert "0 usable subjects at {subject}/tdi.nii.gz, at least 2 are needed" in error
    assert "flat: has the same value everywhere (2)" in error
    assert not (tmp_path / "out").exists()
    assert run("align", *words, "--align#image", "tdi.nii.gz") == 2
    assert "align.image" in capsys.readouterr().err
    assert run("warp", "--output_dir", tmp_path / "out") == 2
    assert run("refine", "--output_dir", tmp_path / "out", "--refine#fixed", "x", "--refine#moving",
               "['y']") == 3  # fmt: skip
    assert "no such file" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 8, 8, 2), "has 2 volumes, and {} has 1"), ((8, 8), "has 2 dimensions, and {} has 3")],
)
def test_images_of_other_dimensions_are_not_refined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], message: str
) -> None:
    rng = np.random.default_rng(0)
    fixed, moving = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    for path, size in ((fixed, (8, 8, 8)), (moving, shape)):
        nib.save(nib.Nifti1Image(rng.random(size).astype(np.float32), np.eye(4)), path)
    out = tmp_path / "out"
    pair = ("--refine#fixed", fixed, "--refine#moving", moving)
    assert run("refine", "--output_dir", out, *pair) == 3
    assert f"{moving}: {message.format(fixed)}; both must have as many" in capsys.readouterr().err
    assert not list(out.rglob("*.nii.gz"))


def test_register_takes_refine_for_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {}
    monkeypatch.setattr(cli, "_run_in_monai", lambda run_id, files, given: passed.update(given))
    key = "learned_atlas#refine#new_subject_iterations"
    for words, steps in (
        (["--refine"], cli.REFINE_STEPS),
        (["--refine", "7"], 7),
        (["--refine", "false"], 0),
        (["--refine", f"--{key}", "9"], 9),
    ):
        passed.clear()
        assert run("register", *words) == 0
        refine = passed.get("learned_atlas#refine", {})
        result = passed[key] if key in passed else refine.get("new_subject_iterations")
        assert result == steps


def test_a_target_image_is_read_as_it_is_compared(aligned: Path) -> None:
    result = ReadImage(aligned / "template.nii.gz", 0.1)
    stored = np.asarray(nib.load(aligned / "template.nii.gz").dataobj)
    np.testing.assert_allclose(
        result.image.values[0, 0].numpy(), np.log1p(np.maximum(stored, 0) / 0.1), rtol=1e-5
    )
