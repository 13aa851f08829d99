"""`comparing`: subjects against the atlas in their space."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from scripts.runtime.ownership import MARK
from scripts.spatial.fields import field_names, read_field

RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
PLACE = Path("atlas_in_patient_space/atlas_mean.nii.gz")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


@pytest.fixture(scope="module")
def carried(averaged, run_bundle, tmp_path_factory) -> Path:
    """The averaging atlas of the demo cohort, warped to its subjects."""
    output = tmp_path_factory.mktemp("carried")
    result = run_bundle(
        "carrying", "atlas_to_patient", f"--atlas_dir={averaged}", f"--output_dir={output}"
    )
    assert result.returncode == 0, result.stderr
    return output


def compare(run_bundle, dataset: Path, carried: Path, output: Path, *words: str):
    return run_bundle(
        "comparing", "tract_similarity", f"--dataset_dir={dataset}", f"--carried_dir={carried}",
        f"--output_dir={output}", *words,
    )  # fmt: skip


def test_metrics_table_sweep_and_plot(demo_cohort, carried, run_bundle, tmp_path):
    result = compare(run_bundle, demo_cohort, carried, tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "tract_similarity"
    names = [f"sub-{number:02d}" for number in range(1, 6)]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [MARK, "cohort.csv", *names, "sweep.json", "sweep.png"]
    )
    with (folder / "cohort.csv").open(encoding="utf-8") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    densities = {
        n: values(demo_cohort / n / RUN / "fdt_paths.nii.gz")
        / float((demo_cohort / n / RUN / "waytotal").read_text())
        for n in names
    }
    assert list(rows) == names
    for name in names:
        entry = json.loads((folder / name / "metrics.json").read_text())["tracts"][0]
        own, atlas = densities[name], values(carried / name / PLACE)
        others = np.mean([densities[n] for n in names if n != name], axis=0)
        for found, image in ((entry, atlas), (entry["leave_one_out"], others)):
            a, b = own > 0.05 * own.max(), image > 0.05 * image.max()
            by_hand = 2 * (a & b).sum() / (a.sum() + b.sum())
            assert found["overlap"]["dice"] == pytest.approx(by_hand, abs=1e-3)
            assert found["correlation"]["own_support"]["pearson"] == pytest.approx(
                np.corrcoef(own[a], image[a])[0, 1], abs=1e-3
            )
        assert entry["leave_one_out"]["overlap"]["dice"] < entry["overlap"]["dice"]
        assert float(rows[name]["overlap.dice"]) == entry["overlap"]["dice"]
        assert len(entry["sweep"]["dice"]) == 19
        assert entry["sweep"]["best"]["dice"] == max(entry["sweep"]["dice"])
    sweep = json.loads((folder / "sweep.json").read_text())
    assert (sweep["thresholds"][0], sweep["thresholds"][-1]) == (0.05, 0.5)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def through(moving: np.ndarray, field: Path) -> np.ndarray:
    """An image resampled by one of the published fields, by scipy in voxels."""
    displacement = read_field(field)
    places = np.stack(np.meshgrid(*map(np.arange, moving.shape), indexing="ij")) + displacement
    return map_coordinates(moving, places, order=1, mode="grid-constant")


def test_leave_one_out_goes_through_the_learned_template(trained, run_bundle, tmp_path):
    for words in (
        ("carrying", "atlas_to_patient", f"--atlas_dir={trained.atlas}"),
        ("comparing", "tract_similarity", f"--dataset_dir={trained.dataset_dir}"),
    ):
        result = run_bundle(*words, f"--output_dir={tmp_path}")
        assert result.returncode == 0, result.stderr
    names = [f"sub-{number:02d}" for number in range(1, 6)]
    moved = []
    for name in names:
        folder = trained.dataset_dir / name / RUN
        density = values(folder / "fdt_paths.nii.gz") / float((folder / "waytotal").read_text())
        moved.append(through(density, trained.atlas / "fields" / field_names(name)[0]))
        if name == names[0]:
            own = density
    others = through(
        np.mean(moved[1:], axis=0), trained.atlas / "fields" / field_names(names[0])[1]
    )
    a, b = own > 0.05 * own.max(), others > 0.05 * others.max()
    found = json.loads((tmp_path / "tract_similarity" / names[0] / "metrics.json").read_text())
    found = found["tracts"][0]["leave_one_out"]
    expected = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert found["overlap"]["dice"] == pytest.approx(expected, abs=2e-3)
    assert found["correlation"]["own_support"]["pearson"] == pytest.approx(
        np.corrcoef(own[a], others[a])[0, 1], abs=1e-3
    )


@pytest.mark.parametrize(
    ("case", "words", "code", "messages"),
    [
        ("no atlas", (), 3, ["sub-01: no such atlas", "carry"]),
        ("other grid", (), 3, ["is not on the grid of subject sub-03", "shifted"]),
        ("apart", (), 3, ["subject sub-03", "no voxel in common"]),
        ("unknown", ("--learned_atlas#cohort#subjects=['sub-99']",), 3, ["sub-99"]),
        ("none", ("--tract_similarity#bins=1",), 2, ["tract_similarity.bins = 1"]),
        ("none", ("--tract_similarity#threshold=2",), 2, ["threshold_mode", "below 1"]),
    ],
)
def test_mistakes_are_one_message_and_publish_nothing(
    case, words, code, messages, demo_cohort, carried, run_bundle, refused, tmp_path
):
    atlases, output = carried, tmp_path / "output"
    if case == "no atlas":
        atlases = tmp_path
    if case == "apart":
        atlases = tmp_path / "apart"
        shutil.copytree(carried, atlases)
        image = nib.load(atlases / "sub-03" / PLACE)
        empty = nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine)
        (atlases / "sub-03" / PLACE).unlink()
        nib.save(empty, atlases / "sub-03" / PLACE)
    if case == "other grid":
        atlases = tmp_path / "shifted"
        shutil.copytree(carried, atlases)
        image = nib.load(atlases / "sub-03" / PLACE)
        affine = image.affine.copy()
        affine[0, 3] += 2
        moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        (atlases / "sub-03" / PLACE).unlink()
        nib.save(moved, atlases / "sub-03" / PLACE)
    refused(compare(run_bundle, demo_cohort, atlases, output, *words), code, *messages)
    assert not (output / "tract_similarity").exists()
