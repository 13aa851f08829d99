"""The benchmark's own arithmetic: known pairs, errors, label overlap."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.bench import affine_networks
from bundle.bench.affine import carried, cohort, errors, label_dice, pair_apart, pairs, table
from scripts.affine.network import AffineNetwork
from scripts.pairwise.network_grid import WorkingGrid
from scripts.registration.images import WorldImage
from scripts.registration.moved import moved_by
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.volumes import read_grid


def blob() -> WorldImage:
    mesh = np.meshgrid(*[np.linspace(-2, 2, 16)] * 3, indexing="ij")
    values = 50 * np.exp(-(mesh[0] ** 2 + 2 * mesh[1] ** 2 + 3 * (mesh[2] - 0.2) ** 2))
    return WorldImage(torch.as_tensor(values, dtype=torch.float32)[None, None], 2 * np.eye(4))


def test_a_pair_is_apart_by_the_matrix_that_it_reports() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    counts = WorldImage(blob().values, affine)
    fixed, moving, truth = pair_apart(counts, 20, 5, np.random.default_rng(0), "affine")
    back, _ = moved_by(torch.from_numpy(truth)[None], fixed, moving)
    still = np.corrcoef(fixed.values.flatten(), moving.values.flatten())[0, 1]
    assert np.corrcoef(fixed.values.flatten(), back.flatten())[0, 1] > max(0.9, still)


def test_errors_are_degrees_and_millimetres_at_the_centre() -> None:
    image = WorldImage(blob().values, np.eye(4))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    centre = np.array([7.5, 7.5, 7.5])
    turn[:3, 3] = centre - turn[:3, :3] @ centre + [3.0, 0.0, 4.0]
    turned, moved = errors(turn, np.eye(4), image)
    assert turned == pytest.approx(np.degrees(0.1))
    assert moved == pytest.approx(5.0)


def test_a_capture_curve_has_every_method_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affine_networks, "CASES", ((20.0, 0.0),))
    monkeypatch.setattr(affine_networks, "SHIFTS", ())
    described = {"settings": {"images": {"log_share": None}, "model": {"kind": "parameters"}}}
    still = AffineNetwork(WorkingGrid((16, 16, 16), 2.0), "rigid", width=0.125,
                          description=described).eval()  # fmt: skip
    image = (np.log1p(blob().values[0, 0].numpy()), 2 * np.eye(4))
    rows = affine_networks.capture_curve({"parameters": still}, [image], 1, True)
    turned, both = rows
    # The identity leaves what was put between them, refinement finds it.
    assert turned["parameters: degrees"] == pytest.approx(20, abs=0.01)
    assert both["parameters: degrees"] == pytest.approx(30, abs=0.01)
    assert both["parameters: mm"] == pytest.approx(0.25 * 16, abs=0.01)
    for name in ("refinement from the identity", "parameters, then refinement"):
        assert turned[f"{name}: degrees"] < 3
        assert turned[f"{name}: mm"] < 1.5
    affine_networks.draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_label_dice_is_a_mean_over_labels() -> None:
    first, second = np.array([0, 1, 1, 2, 2, 0]), np.array([0, 1, 0, 2, 2, 3])
    assert label_dice(first, second) == pytest.approx((2 / 3 + 1.0 + 0.0) / 3)


def test_pairs_and_cohorts_are_read_from_files(tmp_path: Path) -> None:
    values = blob().values[0, 0].numpy()
    for name, shift in (("a", 0), ("b", 2)):
        (tmp_path / name).mkdir()
        moved = np.roll(values, shift, axis=0)
        nib.save(nib.Nifti1Image(moved, np.eye(4)), tmp_path / name / "t.nii.gz")
        labels = (moved > 10).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / name / "l.nii.gz")
    rows = pairs(tmp_path, tmp_path, "{subject}/t.nii.gz", "{subject}/l.nii.gz", 1, "zero", ())
    scores = {row["method"]: row["label Dice"] for row in rows}
    assert scores["unregistered"] < 0.9 < scores["refinement, affine"]
    assert "| refinement, affine |" in table(rows)

    aligned = tmp_path / "aligned"
    subjects = []
    for name, shift in (("a", 0.0), ("b", 2.0)):
        (aligned / name / "xfm").mkdir(parents=True)
        matrix = np.eye(4)
        matrix[0, 3] = shift
        from scripts.spatial.transform_files import write_affine_files

        write_affine_files(aligned / name / "xfm", name, "native", "aligned", matrix)
        image = {"path": str(tmp_path / name / "l.nii.gz"), "name": "l.nii.gz"}
        files = [
            f"{name}_from-{way}_mode-image_xfm{ending}"
            for way in ("native_to-aligned", "aligned_to-native")
            for ending in (".txt", "_ras.txt")
        ]
        subjects.append({"subject": name, "images": [image], "transforms": files})
    (aligned / "alignment.json").write_text(json.dumps({"subjects": subjects}))
    rows = cohort(tmp_path, aligned, "l.nii.gz", None, tmp_path / "a" / "t.nii.gz")
    result = {row["space"]: row["label Dice"] for row in rows}
    assert result["aligned"] > 0.99 > result["native"]

    # b as a new subject, whose field to the atlas is none: a's labels come to it.
    new = tmp_path / "new"
    (new / "registered" / "b").mkdir(parents=True)
    (new / "aligned").symlink_to(aligned)
    (tmp_path / "atlas" / "fields").mkdir(parents=True)
    grid = read_grid(tmp_path / "a" / "t.nii.gz")
    still = np.zeros((3, 16, 16, 16))
    for name in ("a", "b"):
        write_field(tmp_path / "atlas" / "fields" / field_names(name)[0], still, grid)
        (new / "registered" / name).mkdir(exist_ok=True)
        write_field(new / "registered" / name / field_names(name)[1], still, grid)
    rows = carried(tmp_path, aligned, "l.nii.gz", tmp_path / "atlas", new)
    result = {(row["new subject"], row["labels"]): row["least"] for row in rows}
    assert result["b", "through the atlas"] > 0.99 > result["b", "unregistered"]
