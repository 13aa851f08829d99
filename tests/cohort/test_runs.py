"""Several images of a person: named by subject and run, selected by either, never confused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_discovery import find, names, touch

from scripts.cohort import candidates_from_files, find_subjects
from scripts.cohort.runs import warn_of_one_person
from scripts.errors import CohortError
from scripts.settings.align import AlignConfig
from scripts.settings.atlas import LearnedAtlasConfig

FLAT = {"pattern": "{subject}_{run}.nii.gz"}
FILES = ("p01_t1.nii.gz", "p01_t2.nii.gz", "p02_t1.nii.gz", "s_3_t2.nii.gz")
IMAGES = ["p01_t1", "p01_t2", "p02_t1", "s_3_t2"]


def test_files_in_one_folder_are_images_of_their_persons(tmp_path: Path) -> None:
    touch(tmp_path, *FILES)
    result = find(tmp_path, cohort=FLAT)
    assert names(result) == IMAGES
    assert [one.person for one in result.candidates] == ["p01", "p01", "p02", "s_3"]
    assert [one.run for one in result.candidates] == ["t1", "t2", "t1", "t2"]
    assert all(len(one.maps) == 1 for one in result.candidates)


def test_runs_in_folders_too_with_a_map_for_each_tract(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p{n}/ses-{s}/{t}.nii.gz" for n in "12" for s in "ab" for t in ("AF", "CC")))
    cohort = {"pattern": "{subject}/ses-{run}/{tract}.nii.gz", "tracts": ["CC", "AF"]}
    result = find(tmp_path, cohort=cohort, model={"channels": 2})
    assert names(result) == ["p1_a", "p1_b", "p2_a", "p2_b"]
    assert [one.tract for one in result.candidates[1].maps] == ["CC", "AF"]
    assert {one.path.parent.name for one in result.candidates[1].maps} == {"ses-b"}


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [
        ({"exclude": ["p01"]}, ["p02_t1", "s_3_t2"]),
        ({"exclude": ["p01_t2"]}, ["p01_t1", "p02_t1", "s_3_t2"]),
        ({"subjects": ["p01"]}, ["p01_t1", "p01_t2"]),
        ({"subjects": ["p01_t2", "p02_t1"]}, ["p01_t2", "p02_t1"]),
    ],
)
def test_a_person_or_one_image_is_selected_or_left_out(
    tmp_path: Path, cohort: dict[str, list[str]], expected: list[str], caplog
) -> None:
    touch(tmp_path, *FILES)
    result = find(tmp_path, cohort={**FLAT, **cohort})
    assert names(result) == expected
    assert result.rejected == ()
    assert "names no subject" not in caplog.text


def test_a_left_and_a_right_run_stay_one_image_and_single_runs_keep_their_subjects_name(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "p01_left.nii.gz", "p01_right.nii.gz", "p02_left.nii.gz")
    result = find(tmp_path, cohort=FLAT)
    assert names(result) == ["p01", "p02"]
    assert [one.person for one in result.candidates] == ["", ""]
    assert len(result.candidates[0].maps) == 2


def test_images_of_two_persons_never_share_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "a_b/c.nii.gz", "a/b_c.nii.gz", "a/d.nii.gz")
    with pytest.raises(CohortError, match=r"would both be image a_b_c of learned_atlas#cohort#pat"):
        find(tmp_path, cohort={"pattern": "{subject}/{run}.nii.gz"})


def test_single_files_are_images_of_their_persons_as_well(tmp_path: Path) -> None:
    search = LearnedAtlasConfig.load({"cohort": FLAT}).subject_search()
    result = candidates_from_files([tmp_path / name for name in FILES[:2]], search)
    assert names(result) == ["p01_t1", "p01_t2"]
    result = candidates_from_files([tmp_path / name for name in (*FILES[:2], "other.nii")], search)
    assert names(result) == ["other", "p01_t1", "p01_t2"]


def test_without_run_in_a_pattern_two_runs_are_refused_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "p01_t1.nii.gz", "p01_t2.nii.gz")
    with pytest.raises(CohortError, match=r"subject p01 has 2 runs.*put \{run\} there"):
        find(tmp_path, cohort={"pattern": "{subject}_*.nii.gz"})
    settings = AlignConfig.load({"image": "{subject}_*.nii.gz"})
    with pytest.raises(CohortError, match="align#image"):
        find_subjects(tmp_path, settings.subject_search(settings.image))


@pytest.mark.parametrize(
    ("subjects", "warned"),
    [
        (["p01_t1", "p01_t2", "p02_t1", "p02_t2"], "p01_t1, p01_t2 look like images of one person"),
        (["sub-1_ses-a", "sub-1_ses-b", "sub-2_ses-a", "sub-2_ses-b", "x"], "sub-1_ses-a, sub-1_"),
        (["sub-01", "sub-02", "sub-03"], ""),
        (["a_1", "a_2", "b_3", "b_4"], ""),
        (["p01_t1", "p02_t1"], ""),
        ([], ""),
    ],
)
def test_names_that_look_like_images_of_one_person_are_reported_before_a_split(
    subjects: list[str], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_one_person(subjects, "learned_atlas#cohort#pattern")
    assert warned in caplog.text
    assert bool(caplog.records) is bool(warned)
    assert not warned or "name the person in learned_atlas#cohort#pattern, such as" in caplog.text
