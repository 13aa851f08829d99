"""The people of the tutorial hold what the tutorial says of them."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.demo_people import LOWERED, LOWERED_BY, PEOPLE, TRACTS, write_demo_people
from scripts.errors import StorageError
from scripts.tractograms import open_tractogram

FOUR = replace(PEOPLE, subjects=4, streamlines=20)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_demo_people(tmp_path_factory.mktemp("demo") / "people", FOUR))


def test_every_person_has_tracts_and_fa(people: Path) -> None:
    with (people / "participants.tsv").open() as file:
        groups = [row["group"] for row in csv.DictReader(file, delimiter="\t")]
    assert groups == ["control"] * 2 + ["patient"] * 2
    reference = nib.load(people / "reference.nii.gz")
    for name in FOUR.names:
        assert {path.stem for path in (people / name).glob("*.trk")} == set(TRACTS)
        image = nib.load(people / name / "fa.nii.gz")
        assert image.shape == reference.shape
        assert np.allclose(image.affine, reference.affine)


def test_patients_have_less_fa_in_one_tract(people: Path) -> None:
    """Measured where the person's streamlines run, without any of the jobs."""
    result: dict[tuple[str, bool], list[float]] = {}
    for index, name in enumerate(FOUR.names):
        image = nib.load(people / name / "fa.nii.gz")
        fa = np.asarray(image.dataobj)
        for tract in TRACTS:
            points = open_tractogram(people / name / f"{tract}.trk").read().points
            voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
            cells = np.rint(voxels).astype(int)
            inside = ((cells >= 0) & (cells < fa.shape)).all(axis=1)
            value = float(np.median(fa[tuple(cells[inside].T)]))
            result.setdefault((tract, index >= 2), []).append(value)
    for tract in TRACTS:
        difference = np.mean(result[tract, True]) - np.mean(result[tract, False])
        lowered = LOWERED_BY if tract == LOWERED else 0
        assert difference == pytest.approx(-lowered, abs=0.03)


def test_equal_calls_give_equal_people(people: Path, tmp_path: Path) -> None:
    again = Path(write_demo_people(tmp_path / "again", FOUR))

    def hashes(folder: Path) -> dict[str, str]:
        files = [path for path in folder.rglob("*") if path.suffix in (".trk", ".gz", ".tsv")]
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    assert hashes(again) == hashes(people)
    write_demo_people(again, FOUR)  # over its earlier self


def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError):
        write_demo_people(tmp_path, FOUR)
    assert (tmp_path / "mine.txt").read_text() == "mine"
