"""Cohorts of tractograms: counted once, kept, and read like any other cohort."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort import read_cohort, read_density, read_new_subjects
from scripts.cohort import tractogram_maps as counting
from scripts.cohort.discovery import FoundMap
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.cohort import CohortRequest
from scripts.spatial.grid import Grid
from scripts.tractograms import SUFFIXES, DensityCounter, Streamlines, write_tractogram

SHAPE, AFFINE = (10, 9, 8), np.diag([2.0, 2.0, 2.0, 1.0])


def lines(seed: int, count: int = 20) -> Streamlines:
    rng = np.random.default_rng(seed)
    return Streamlines.of([rng.uniform(1, 13, (5, 3)).astype(np.float32) for _ in range(count)])


@pytest.fixture
def dataset(tmp_path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), folder / "reference.nii.gz")
    for number, suffix in enumerate(SUFFIXES):
        write_tractogram(folder / f"sub-{number}{suffix}", lines(number), SHAPE, AFFINE)
    return folder


def settings(**cohort) -> CohortRequest:
    block = {"layout": "streamlines", "reference": "reference.nii.gz", **cohort}
    return LearnedAtlasConfig.load({"min_subjects": 2, "cohort": block}).cohort_request()


def test_every_format_becomes_the_share_of_streamlines_through_a_voxel(dataset):
    cohort = read_cohort(dataset, settings())
    assert [one.name for one in cohort.subjects] == ["sub-0", "sub-1", "sub-2", "sub-3"]
    assert cohort.grid.shape == SHAPE
    expected = np.zeros(SHAPE)
    for number in range(4):
        counter = DensityCounter(SHAPE, AFFINE)
        counter.add(lines(number))
        expected += counter.density / 20 / 4
    mean = cohort.crop.paste(cohort.mean_density, SHAPE)[0]
    np.testing.assert_allclose(mean, expected, atol=1e-7)


def test_maps_are_counted_once_until_the_tractogram_or_the_grid_changes(dataset, monkeypatch):
    counted: list[Path] = []
    count = counting.count_density

    def spy(paths, grid, **more):
        counted.extend(paths)
        return count(paths, grid, **more)

    monkeypatch.setattr(counting, "count_density", spy)
    first = read_cohort(dataset, settings())
    assert len(counted) == 4
    assert read_cohort(dataset, settings()).identity() == first.identity()
    assert len(counted) == 4
    write_tractogram(dataset / "sub-1.tck", lines(9), SHAPE, AFFINE)
    assert read_cohort(dataset, settings()).identity() != first.identity()
    assert [path.name for path in counted[4:]] == ["sub-1.tck"]
    # A description without its map is not a map.
    next((dataset / ".density_maps").glob("sub-2_*.nii.gz")).unlink()
    read_cohort(dataset, settings())
    assert counted[-1].name == "sub-2.trx"
    larger = nib.Nifti1Image(np.zeros((10, 9, 9), np.uint8), AFFINE)
    nib.save(larger, dataset / "reference.nii.gz")
    assert read_cohort(dataset, settings()).grid.shape == (10, 9, 9)
    assert len(counted) == 10


def test_the_description_says_which_tractogram_it_was(dataset):
    cohort = read_cohort(dataset, settings())
    described = json.loads(json.dumps(cohort.as_dict()))["subjects"][2]["maps"][0]
    assert described["counted"]["tractogram"] == str(dataset / "sub-2.trx")
    assert described["counted"]["streamlines"] == 20
    assert str(dataset / "sub-2.trx") in cohort.table()


def test_tracts_in_folders_with_an_absent_one(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "reference.nii.gz")
    for subject in ("a", "b"):
        for seed, tract in enumerate(("af", "cst")):
            empty = subject == "b" and tract == "af"
            made = Streamlines.of([]) if empty else lines(seed)
            (tmp_path / subject).mkdir(exist_ok=True)
            write_tractogram(tmp_path / subject / f"{tract}.trk", made, SHAPE, AFFINE)
    cohort = {**settings().cohort.as_dict(), "tracts": ["cst", "af"]}
    block = {"min_subjects": 2, "model": {"channels": 2}, "cohort": cohort}
    cohort = read_cohort(tmp_path, LearnedAtlasConfig.load(block).cohort_request())
    assert [one.channel for one in cohort.subjects[1].maps] == [0, 1]
    assert cohort.mean_density.shape[0] == 2
    assert read_density(cohort.subjects[1].maps[1].path)[0].sum() == 0


def test_a_pattern_and_another_folder_for_the_maps(dataset, tmp_path):
    config = settings(
        pattern="sub-{subject}.t?k", layout="flat", density_dir=str(tmp_path / "kept")
    )
    cohort = read_cohort(dataset, config)
    assert [one.name for one in cohort.subjects] == ["0", "1"]
    assert len(list((tmp_path / "kept").glob("*.nii.gz"))) == 2
    assert not (dataset / ".density_maps").exists()


def test_new_subjects_are_counted_on_the_atlas_grid(dataset, tmp_path):
    cohort = read_cohort(dataset, settings())
    new = tmp_path / "sub-new.tck"
    write_tractogram(new, lines(7))
    config = settings(reference=None)
    result = read_new_subjects(new, config, cohort.grid, cohort.crop)
    assert result.subjects[0].name == "sub-new"
    data, grid = read_density(result.subjects[0].maps[0].path)
    assert grid.same_as(cohort.grid) is None
    counter = DensityCounter(SHAPE, AFFINE)
    counter.add(lines(7))
    np.testing.assert_array_equal(data, counter.density)


def test_who_cant_be_counted_is_left_out_with_the_tractogram_named(dataset, caplog):
    raw = (dataset / "sub-0.trk").read_bytes()
    (dataset / "sub-0.trk").write_bytes(raw[:-5])
    write_tractogram(dataset / "sub-1.tck", Streamlines.of([]))
    away = lines(3)
    away.points[...] += 1000
    write_tractogram(dataset / "sub-4.trk", away, SHAPE, AFFINE)
    partly = lines(5)
    partly.points[0] = -50
    write_tractogram(dataset / "sub-5.trk", partly, SHAPE, AFFINE)
    cohort = read_cohort(dataset, settings())
    reasons = {one.subject: (Path(one.path).name, one.reason) for one in cohort.rejected}
    assert reasons["sub-0"][0] == "sub-0.trk"
    assert "truncated" in reasons["sub-0"][1]
    assert reasons["sub-1"] == ("sub-1.tck", "is empty: contains no streamline")
    assert "touches the reference's grid" in reasons["sub-4"][1]
    assert len(cohort.subjects) == 3
    assert "1 points of 1 streamlines are outside the grid" in caplog.text


def test_a_missing_reference_is_reported(dataset):
    with pytest.raises(ConfigurationError, match=r"cohort\.reference = None.*sub-0\.trk"):
        read_cohort(dataset, settings(reference=None))
    with pytest.raises(CohortError, match=r"other\.nii.*does not exist"):
        read_cohort(dataset, settings(reference="other.nii"))
    (dataset / "text.nii").write_text("text")
    with pytest.raises(CohortError, match=r"reference .*text\.nii: can't be read"):
        read_cohort(dataset, settings(reference="text.nii"))


@pytest.mark.parametrize("key", ["reference", "density_dir"])
def test_empty_paths_are_refused(key):
    with pytest.raises(ConfigurationError, match=f"cohort.{key} = ' '"):
        settings(**{key: " "})


def test_a_pipe_in_the_place_of_a_tractogram_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sub-1.tck")
    grid = Grid((4, 4, 4), np.eye(4), nib.Nifti1Header())
    with pytest.raises(CohortError, match="Is not a file"):
        counting.Counting(grid, tmp_path).map_of("sub-1", FoundMap(tmp_path / "sub-1.tck", 0, None))


def test_maps_are_not_kept_behind_a_link_that_leads_out(tmp_path: Path) -> None:
    dataset, elsewhere = tmp_path / "d", tmp_path / "home"
    dataset.mkdir()
    elsewhere.mkdir()
    (dataset / ".density_maps").symlink_to(elsewhere)
    (dataset / "sub-1.tck").write_bytes(b"x")
    grid = Grid((4, 4, 4), np.eye(4), nib.Nifti1Header())
    with pytest.raises(CohortError, match="a link that leads out"):
        counting.Counting(grid, None).map_of("sub-1", FoundMap(dataset / "sub-1.tck", 0, None))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("ending", [".nii.gz", "_waytotal", ".json"])
def test_a_flipped_bit_of_a_kept_map_is_reported_and_the_map_counted_again(
    dataset: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    whole = read_cohort(dataset, settings()).identity()
    kept = min((dataset / ".density_maps").glob(f"*{ending}"))
    sound = kept.read_bytes()
    checksum = [sound.index(b"checksum")] if ending == ".json" else []  # its name, too
    for place in (*range(0, len(sound), max(1, len(sound) // 6)), *checksum):
        raw = bytearray(sound)
        raw[place] ^= 4
        kept.write_bytes(raw)
        caplog.clear()
        assert read_cohort(dataset, settings()).identity() == whole
        assert "the tractogram is counted again" in caplog.text
        assert kept.read_bytes() == sound


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", "[" * 99_999, '{"tractogram": "$1"}', '{"streamlines": 1e400}',
     '{"tractogram": "../../x", "sha256": "@x", "streamlines": "%x", "outside": 0, "left": 0}',
     '{"tractogram": "x", "sha256": "x", "streamlines": -1, "outside": 0, "left": 0}',
     '{"tractogram": "x", "sha256": "x", "streamlines": true, "outside": 0, "left": 0}'],
)  # fmt: skip
def test_a_description_that_is_none_is_made_anew(dataset: Path, text: str) -> None:
    whole = read_cohort(dataset, settings()).identity()
    kept = sorted((dataset / ".density_maps").glob("*.json"))
    before = [path.read_text() for path in kept]
    assert before
    for path in kept:
        path.write_text(text)
    assert read_cohort(dataset, settings()).identity() == whole
    assert [path.read_text() for path in kept] == before
