"""Which maps of a subject belong together: runs, tracts, files that are listed one by one."""

import logging
import unicodedata
from pathlib import Path

import pytest
from empty_datasets import fdt, files, find, names, touch

from scripts.cohort import are_left_and_right, candidates_from_files
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig

# ------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    "one, other",
    [
        ("left", "right"),
        ("cst_left", "cst_right"),
        ("L", "R"),
        ("cst-l", "cst-r"),
        ("lh.cst", "rh.cst"),
        ("cstLeft", "cstRight"),
        ("sub-1_hemi-L", "sub-1_hemi-R"),
        ("right", "left"),
        ("left/run_left", "right/run_right"),
        ("LEFT", "right"),
    ],
)
def test_left_and_right(one, other):
    assert are_left_and_right(one, other)
    assert are_left_and_right(other, one)


@pytest.mark.parametrize(
    "one, other",
    [
        ("run-1", "run-2"),
        ("left", "left"),
        ("left_1", "right_2"),
        ("left", "l"),
        ("left_right", "right_left"),
        ("al", "ar"),
        ("left", "rh"),
        ("left", "whole"),
        ("cst_left", "af_right"),
        ("cst_left", "cst-right"),
        ("", "right"),
        ("left_a", "right"),
    ],
)
def test_not_left_and_right(one, other):
    assert not are_left_and_right(one, other)
    assert not are_left_and_right(other, one)


def test_left_and_right_runs_belong_to_one_subject(tmp_path):
    touch(tmp_path, fdt("s1", "cst_left"), fdt("s1", "cst_right"), fdt("s2", "cst_left"))
    result = find(tmp_path)
    assert names(result) == ["s1", "s2"]
    assert [len(candidate.maps) for candidate in result.candidates] == [2, 1]
    assert {one.channel for one in result.candidates[0].maps} == {0}


@pytest.mark.parametrize(
    "runs",
    [
        ["run-1", "run-2"],
        ["left", "right", "whole"],
        ["cst_left", "af_right"],
        ["a_left", "a_right", "b_left", "b_right"],
    ],
)
def test_unexplained_runs_stop_the_cohort_and_are_named(tmp_path, runs):
    touch(tmp_path, fdt("s1", runs[0]), *(fdt("s2", run) for run in runs))
    with pytest.raises(CohortError) as caught:
        find(tmp_path)
    assert f"subject s2 has {len(runs)} runs" in str(caught.value)
    for run in runs:
        assert str(tmp_path / fdt("s2", run)) in str(caught.value)


def test_runs_of_excluded_subjects_do_not_matter(tmp_path):
    touch(tmp_path, fdt("s1"), fdt("s2", "run-1"), fdt("s2", "run-2"))
    assert names(find(tmp_path, cohort={"exclude": ["s2"]})) == ["s1"]


@pytest.mark.parametrize(
    "paths, values",
    [
        (["s.nii", "s.nii.gz"], {"layout": "flat"}),
        (["sub-1/ses-1/dwi/a_tdi.nii.gz", "sub-1/ses-2/dwi/a_tdi.nii.gz"], {"layout": "bids"}),
        (["s/a/tdi.nii", "s/tdi.nii"], {"pattern": "{subject}/**/tdi.nii"}),
        (["s/1_tdi.nii", "s/2_tdi.nii"], {"pattern": "{subject}/*_tdi.nii"}),
    ],
)
def test_one_subject_is_never_counted_twice(tmp_path, paths, values):
    touch(tmp_path, *paths)
    with pytest.raises(CohortError, match="has 2 runs"):
        find(tmp_path, cohort=values)


def test_hemispheres_of_a_bids_bundle(tmp_path):
    touch(tmp_path, *(f"sub-1/dwi/sub-1_hemi-{side}_bundle-AF_tdi.nii.gz" for side in "LR"))
    values = {"layout": "bids", "tracts": ["AF"]}
    assert len(find(tmp_path, cohort=values).candidates[0].maps) == 2


# ---------------------------------------------------------------------------------------- tracts


@pytest.fixture
def xtract(tmp_path) -> Path:
    touch(
        tmp_path,
        *(
            f"s{number}/tracts/{tract}/density.nii.gz"
            for number in (1, 2)
            for tract in ("af", "cst")
        ),
        "s3/tracts/af/density.nii.gz",
        "s1/tracts/fa/density.nii.gz",
    )
    return tmp_path


def test_a_channel_per_tract_in_the_order_asked_for(xtract):
    values = {"cohort": {"layout": "xtract", "tracts": ["cst", "af"]}, "model": {"channels": 2}}
    result = find(xtract, **values)
    assert result.tracts == ("cst", "af")
    assert names(result) == ["s1", "s2"]
    assert [(one.tract, one.channel) for one in result.candidates[0].maps] == [
        ("cst", 0),
        ("af", 1),
    ]
    assert [(one.subject, one.reason) for one in result.rejected] == [("s3", "no map of tract cst")]


def test_a_tract_that_no_subject_has(xtract):
    with pytest.raises(ConfigurationError, match=r"no subject has 'ifo'.*af, cst, fa"):
        find(xtract, cohort={"layout": "xtract", "tracts": ["ifo"]})


def test_several_channels_take_the_tracts_of_the_dataset(xtract):
    values = {"cohort": {"layout": "xtract"}, "model": {"channels": 3}}
    assert find(xtract, **values).tracts == ("af", "cst", "fa")


def test_channels_must_be_as_many_as_tracts(xtract):
    values = {"cohort": {"layout": "xtract"}, "model": {"channels": 2}}
    with pytest.raises(ConfigurationError, match=r"channels = 2: the dataset has 3 tracts"):
        find(xtract, **values)


def test_tracts_stand_in_for_the_whole_map_and_differences_are_reported(xtract, caplog):
    with caplog.at_level(logging.INFO):
        result = find(xtract, cohort={"layout": "xtract"})
    assert [len(candidate.maps) for candidate in result.candidates] == [3, 2, 1]
    assert {one.channel for candidate in result.candidates for one in candidate.maps} == {0}
    assert result.tracts == ()
    assert "af, cst, fa are summed into one map" in caplog.text
    assert "subject s3 has no map of tract cst, fa" in caplog.text


def test_affine_space_falls_back_to_the_whole_map_for_the_whole_cohort(tmp_path):
    touch(tmp_path, "s1/dwi/af/tdi.nii", "s1/dwi/tdi.nii", "s2/dwi/af/tdi.nii")
    space = {"training_space": "affine_native", "affine_native_relpath": "dwi/{tract}/tdi.nii"}
    whole = find(tmp_path, **space)
    assert (files(whole, tmp_path), whole.without_map) == (["s1/dwi/tdi.nii"], ("s2",))
    single = find(tmp_path, **space, cohort={"tracts": ["af"]})
    assert files(single, tmp_path) == ["s1/dwi/af/tdi.nii", "s2/dwi/af/tdi.nii"]


# ------------------------------------------------------------------------------- files one by one


@pytest.mark.parametrize(
    "file, values, name",
    [
        (fdt("sub-9"), {}, "sub-9"),
        ("somewhere/new patient.nii.gz", {}, "new patient"),
        ("x/sub-9/tdi.nii", {"pattern": "{subject}/tdi.nii"}, "sub-9"),
        ("x/sub-9/dwi/sub-9_tdi.nii", {"pattern": "{subject}/**/{subject}_tdi.nii"}, "sub-9"),
        ("x/sub-8/dwi/sub-9_tdi.nii", {"pattern": "{subject}/{subject}_tdi.nii"}, "sub-9"),
        ("x/s8/s9_tdi.nii", {"pattern": "{subject}/{subject}_tdi.nii"}, "s9_tdi"),
        ("sub-9/ses-1/dwi/sub-9_ses-1_tdi.nii.gz", {"layout": "bids"}, "sub-9"),
    ],
)
def test_names_of_single_files(tmp_path, file, values, name):
    config = LearnedAtlasConfig.load({"cohort": values}).subject_search()
    result = candidates_from_files([tmp_path / file], config)
    assert names(result) == [name]


def test_tract_of_a_single_bids_file(tmp_path):
    block = {"cohort": {"layout": "bids", "tracts": ["AF"]}}
    config = LearnedAtlasConfig.load(block).subject_search()
    result = candidates_from_files([tmp_path / "sub-9_bundle-AF_tdi.nii.gz"], config)
    assert (names(result), result.candidates[0].maps[0].tract) == (["sub-9"], "AF")


def test_single_files_of_one_subject_are_sides_or_an_error(tmp_path):
    config = LearnedAtlasConfig.load().subject_search()
    sides = [tmp_path / fdt("s", "cst_left"), tmp_path / fdt("s", "cst_right")]
    assert len(candidates_from_files(sides, config).candidates[0].maps) == 2
    with pytest.raises(CohortError, match="has 2 runs"):
        candidates_from_files([tmp_path / fdt("s", "a"), tmp_path / fdt("s", "b")], config)


# ----------------------------------------------------------------- names that some systems confuse


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("Sub-A", "sub-a", "upper and lower case"),
        ("Straße", "STRASSE", "upper and lower case"),
        ("Müller", unicodedata.normalize("NFD", "Müller"), "the form of its letters"),
        ("MÜLLER", unicodedata.normalize("NFD", "müller"), "upper and lower case"),
    ],
)
def test_names_that_are_one_on_some_file_systems_are_both_left_out(tmp_path, one, other, what):
    touch(tmp_path, f"{one}.nii.gz", f"{other}.nii.gz", "sub-c.nii.gz")
    result = find(tmp_path, cohort={"layout": "flat"})
    assert names(result) == ["sub-c"]
    assert {rejection.subject for rejection in result.rejected} == {one, other}
    assert all(what in rejection.reason for rejection in result.rejected)
    by_file = candidates_from_files(
        sorted(tmp_path.iterdir()),
        LearnedAtlasConfig.load({"cohort": {"layout": "flat"}}).subject_search(),
    )
    assert [candidate.name for candidate in by_file.candidates] == ["sub-c"]


def test_excluding_one_of_two_names_keeps_the_other(tmp_path):
    touch(tmp_path, "Sub-A.nii.gz", "sub-a.nii.gz", "sub-c.nii.gz")
    result = find(tmp_path, cohort={"layout": "flat", "exclude": ["Sub-A"]})
    assert names(result) == ["sub-a", "sub-c"]
    assert not result.rejected


@pytest.mark.parametrize("name", ["..nii.gz", "...nii.gz", ".x.nii.gz", "a\nb.nii.gz"])
def test_a_file_whose_name_no_folder_can_have_is_left_out(tmp_path, name):
    touch(tmp_path, name, "sub-c.nii.gz")
    search = LearnedAtlasConfig.load({"cohort": {"layout": "flat"}}).subject_search()
    result = candidates_from_files([tmp_path / name, tmp_path / "sub-c.nii.gz"], search)
    assert [candidate.name for candidate in result.candidates] == ["sub-c"]
    assert [rejection.path for rejection in result.rejected] == [str(tmp_path / name)]


def test_a_trx_folder_is_named_among_those_left_out(tmp_path):
    (tmp_path / "a.trk").touch()
    (tmp_path / "b.trx").mkdir()
    (tmp_path / "c").mkdir()
    result = find(tmp_path, cohort={"layout": "streamlines"})
    assert [one.name for one in result.candidates] == ["a"]
    assert [(one.subject, "pack it as one" in one.reason) for one in result.rejected] == [
        ("b", True)
    ]
