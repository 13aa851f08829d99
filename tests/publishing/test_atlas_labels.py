"""The annotated atlas: what is published, and what carry makes of it in a patient's space."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.applications.atlas_to_patient import AtlasCarrier
from scripts.cohort.subject_images import find_subject_images
from scripts.publishing.published_atlas import open_atlas
from scripts.settings.applications import AtlasToPatientConfig


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def annotated(bench, tmp_path):
    """Subjects that were shifted along the first axis, with a box of label 300 that moved along."""
    moves = [2.0, -1.0, 0.0, -1.0]
    made = bench(moves=moves)
    names = [subject.name for subject in made.cohort.subjects]
    for name, move in zip(names, moves, strict=True):
        labels = np.zeros(made.cohort.grid.shape, dtype=np.int16)
        # The template's voxel x shows the subject's x - move.
        start = 6 - int(move)
        labels[start : start + 3, 4:8, 5:9] = 300
        labels[start - 1, 4:8, 5:9] = 7
        nib.save(nib.Nifti1Image(labels, made.cohort.grid.affine), tmp_path / f"{name}.nii.gz")
    images = find_subject_images(
        "{subject}.nii.gz", tmp_path, names, made.cohort.grid, "learned_atlas.cohort.labels", 0.01
    )
    made.publisher.cohort = replace(made.cohort, labels=images, label_names={300: "thalamus, left"})
    made.publisher.publish()
    return made


def test_probabilities_majority_and_names_are_published(annotated):
    majority = values(annotated.atlas / "atlas_dseg.nii.gz")
    assert majority.dtype == np.int16
    inner = np.zeros_like(majority)
    inner[6:9, 4:8, 5:9] = 300
    inner[5, 4:8, 5:9] = 7
    assert np.array_equal(majority, inner)
    probability = values(annotated.atlas / "labels/label-300_probseg.nii.gz")
    assert np.allclose(probability, inner == 300, atol=1e-3)
    rows = rows_of(annotated.atlas / "atlas_dseg.tsv")
    assert [(row["index"], row["name"], row["subjects"]) for row in rows] == [
        ("7", "7", "4"), ("300", "thalamus, left", "4"),
    ]  # fmt: skip
    assert float(rows[1]["volume_mm3"]) == pytest.approx(3 * 4 * 4 * 8)
    atlas = open_atlas(annotated.atlas)
    assert atlas.label_names == {7: "7", 300: "thalamus, left"}
    assert list(atlas.label_maps()) == [7, 300]


def test_carry_gives_a_subject_its_labels_back(annotated, tmp_path):
    settings = AtlasToPatientConfig.load({"patients": ["sub-1"], "label_probabilities": True})
    AtlasCarrier(annotated.atlas, settings, tmp_path / "none", tmp_path / "out").run()
    folder = tmp_path / "out/sub-1/atlas_in_patient_space"
    own = values(tmp_path / "sub-1.nii.gz")
    result = values(folder / "atlas_dseg.nii.gz")
    assert result.dtype.kind == "i"
    assert np.array_equal(result, own)
    share = values(folder / "labels/label-300_probseg.nii.gz")
    assert np.allclose(share, own == 300, atol=1e-3)
    assert [row["name"] for row in rows_of(folder / "atlas_dseg.tsv")] == ["7", "thalamus, left"]
    content = json.loads((folder / "carried.json").read_text())
    assert sorted(content["labels"]) == ["label-300_probseg.nii.gz", "label-7_probseg.nii.gz"]


def test_an_atlas_without_labels_is_as_before(bench, tmp_path):
    made = bench()
    made.publisher.publish()
    assert not (made.atlas / "atlas_dseg.nii.gz").exists()
    assert open_atlas(made.atlas).label_maps() == {}
    settings = AtlasToPatientConfig.load({"patients": ["sub-1"]})
    AtlasCarrier(made.atlas, settings, tmp_path / "none", tmp_path / "out").run()
    assert not list((tmp_path / "out").rglob("*dseg*"))
