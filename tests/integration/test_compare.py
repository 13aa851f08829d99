"""`comparing`: subjects against the atlas in their space."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
PLACE = Path("atlas_in_patient_space/atlas_mean.nii.gz")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


@pytest.fixture(scope="module")
def carried(demo_cohort, run_bundle, tmp_path_factory) -> Path:
    """The averaging atlas of the demo cohort, carried to its subjects."""
    output = tmp_path_factory.mktemp("carried")
    for words in (
        ("averaging", "average", f"--dataset_dir={demo_cohort}"),
        ("carrying", "atlas_to_patient", f"--atlas_dir={output}/atlas"),
    ):
        result = run_bundle(*words, f"--output_dir={output}")
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
        ["cohort.csv", *names, "sweep.json", "sweep.png"]
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


@pytest.mark.parametrize(
    ("case", "words", "code", "messages"),
    [
        ("no atlas", (), 3, ["sub-01: there is no atlas", "carry"]),
        ("other grid", (), 3, ["is not on the grid of subject sub-03", "shifted"]),
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
