"""Which folders are subjects, and which never are."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from empty_datasets import fdt, files, find, names, touch

from scripts.errors import CohortError

# --------------------------------------------------------------------------------------- layouts

FILES = {
    "probtrackx2": [[fdt("s1"), fdt("s2")], [fdt("s1", method="mrtrix3")], ["s1/fdt_paths.nii.gz"]],
    "mrtrix3": [
        [fdt("s1", method="mrtrix3")],
        ["s1/tractography/mrtrix3/a/warped_streamlines/tdi.nii.gz"],
    ],
    "xtract": [
        ["s1/tracts/af_l/densityNorm.nii.gz"],
        ["s1/tracts/af_l/density.nii.gz"],
        ["s1/tracts/af_l/sum_density.nii.gz"],
    ],
    "tractseg": [
        ["s1/tractseg_output/dm_regression/AF_left.nii.gz"],
        ["s1/tractseg_output/bundle_segmentations/AF_left.nii.gz"],
    ],
    "bids": [
        ["sub-01/dwi/sub-01_space-MNI_density.nii.gz"],
        ["sub-01/ses-1/dwi/sub-01_ses-1_tdi.nii.gz"],
        ["sub-01/dwi/sub-01_bundle-AF_desc-x_dwimap.nii.gz"],
    ],
    "flat": [["s1.nii.gz", "s2.nii"], ["s1 copy.nii.gz", "sübject.nii.gz"]],
}


@pytest.mark.parametrize(
    "layout, paths", [(layout, paths) for layout, sets in FILES.items() for paths in sets]
)
def test_layouts_find_their_files(tmp_path, layout, paths):
    touch(tmp_path, *paths)
    result = find(tmp_path, cohort={"layout": layout})
    assert files(result, tmp_path) == sorted(paths)
    assert result.rejected == ()


def test_one_alternative_holds_for_the_whole_cohort(tmp_path):
    touch(tmp_path, fdt("s1"), fdt("s2"), fdt("s2", method="mrtrix3"), fdt("s3", method="mrtrix3"))
    result = find(tmp_path)
    assert names(result) == ["s1", "s2"]
    assert "probtrackx2" in result.pattern
    assert result.without_map == ("s3",)


def test_whole_maps_of_bids_are_no_bundles(tmp_path):
    touch(
        tmp_path,
        "sub-1/dwi/sub-1_tdi.nii.gz",
        "sub-1/dwi/sub-1_bundle-AF_tdi.nii.gz",
        "sub-1/dwi/sub-1_FA_dwimap.nii.gz",
    )
    assert files(find(tmp_path, cohort={"layout": "bids"}), tmp_path) == [
        "sub-1/dwi/sub-1_tdi.nii.gz"
    ]


def test_a_bids_entity_ends_at_the_underscore(tmp_path):
    touch(tmp_path, "sub-1/dwi/sub-1_bundle-AF_desc-x_tdi.nii.gz")
    result = find(tmp_path, cohort={"layout": "bids"})
    assert result.candidates[0].maps[0].tract == "AF"


@pytest.mark.parametrize(
    "pattern, path, subject, tract",
    [
        ("{subject}/tdi.nii.gz", "sub 01/tdi.nii.gz", "sub 01", None),
        ("derived/{subject}/x.nii", "derived/ü/x.nii", "ü", None),
        ("sub-{subject}/dwi/sub-{subject}_tdi.nii", "sub-7/dwi/sub-7_tdi.nii", "7", None),
        ("{subject}/**/tdi.nii", "s/a/b/tdi.nii", "s", None),
        ("{subject}/**/tdi.nii", "s/tdi.nii", "s", None),
        ("{tract}/{subject}.nii.gz", "af/s.x.nii.gz", "s.x", "af"),
        ("{subject}/*_?.nii", "s/tdi_1.nii", "s", None),
        ("{subject}_{tract}.nii", "a_b_c.nii", "a_b", "c"),
        ("{subject}/[x].nii", "s/[x].nii", "s", None),
        ("{subject}/.dwi/x.nii", "s/.dwi/x.nii", "s", None),
    ],
)
def test_patterns(tmp_path, pattern, path, subject, tract):
    touch(tmp_path, path)
    result = find(tmp_path, cohort={"pattern": pattern})
    assert files(result, tmp_path) == [path]
    assert names(result) == [subject]
    assert result.candidates[0].maps[0].tract == tract


def test_a_repeated_placeholder_has_one_value(tmp_path):
    touch(tmp_path, "s1/s2_tdi.nii", "s3/s3_tdi.nii")
    assert names(find(tmp_path, cohort={"pattern": "{subject}/{subject}_tdi.nii"})) == ["s3"]


# ---------------------------------------------------------------------------- what is not a subject


def test_outputs_and_hidden_entries_are_never_subjects(tmp_path):
    touch(
        tmp_path,
        fdt("sub-1"),
        fdt("atlas"),
        fdt("learned_atlas"),
        fdt("mine"),
        fdt(".truth"),
        fdt("atlas_in_patient_space"),
        fdt("sub-1", ".left"),
        "group/notes.txt",
        "notes.txt",
    )
    result = find(tmp_path, output_subdir="mine")
    assert names(result) == ["sub-1"]
    assert len(result.candidates[0].maps) == 1
    assert result.rejected == ()
    assert result.without_map == ("group",)


def test_outputs_inside_a_subject_are_passed_over(tmp_path):
    touch(
        tmp_path,
        "s/dwi/tdi.nii",
        "s/atlas_in_patient_space/tdi.nii",
        "s/learned_atlas/x/tdi.nii",
        "s/.cache/tdi.nii",
    )
    assert files(find(tmp_path, cohort={"pattern": "{subject}/**/tdi.nii"}), tmp_path) == [
        "s/dwi/tdi.nii"
    ]


def test_hidden_files_of_a_flat_folder(tmp_path):
    touch(tmp_path, ".s0.nii.gz", "._s1.nii.gz", "s1.nii.gz", "atlas.nii.gz")
    assert names(find(tmp_path, cohort={"layout": "flat"})) == ["s1"]


def test_a_folder_with_the_name_of_a_map_is_no_map(tmp_path):
    (tmp_path / "s1" / "tdi.nii.gz").mkdir(parents=True)
    result = find(tmp_path, cohort={"pattern": "{subject}/tdi.nii.gz"})
    assert (result.candidates, result.without_map) == ((), ("s1",))


def test_a_broken_link_is_found_so_that_it_can_be_refused(tmp_path):
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "tdi.nii").symlink_to("/nowhere/tdi.nii")
    assert names(find(tmp_path, cohort={"pattern": "{subject}/tdi.nii"})) == ["s1"]


def test_link_loops_end(tmp_path):
    touch(tmp_path, "s1/a/tdi.nii")
    (tmp_path / "s1" / "a" / "loop").symlink_to(tmp_path / "s1")
    (tmp_path / "s1" / "here").symlink_to(".")
    (tmp_path / "s1" / "self").symlink_to("self")
    result = find(tmp_path, cohort={"pattern": "{subject}/a/**/tdi.nii"})
    assert files(result, tmp_path) == ["s1/a/tdi.nii"]


def test_linked_subjects_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "tdi.nii")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "s1").symlink_to(tmp_path / "elsewhere")
    assert names(find(tmp_path / "data", cohort={"pattern": "{subject}/tdi.nii"})) == ["s1"]


def test_a_name_that_is_not_utf8_is_rejected(tmp_path):
    bad = os.fsdecode(b"sub-\xff")
    touch(tmp_path, f"{bad}/tdi.nii", "s1/tdi.nii")
    result = find(tmp_path, cohort={"pattern": "{subject}/tdi.nii"})
    assert names(result) == ["s1"]
    assert "UTF-8" in result.rejected[0].reason
    result.rejected[0].subject.encode("utf-8")


@pytest.mark.parametrize("kind, words", [("none", "does not exist"), ("file", "is not a folder")])
def test_dataset_folder_that_is_none(tmp_path, kind, words):
    if kind == "file":
        touch(tmp_path, "x")
    with pytest.raises(CohortError, match=words):
        find(tmp_path / "x")


def test_unreadable_folders(tmp_path, monkeypatch):
    touch(tmp_path, fdt("s1"), fdt("s2"))
    listing = Path.iterdir

    def refuse(closed: Path):
        def iterdir(self: Path):
            if self == closed:
                raise PermissionError(13, "Permission denied")
            return listing(self)

        monkeypatch.setattr(Path, "iterdir", iterdir)

    refuse(tmp_path / "s2" / "tractography" / "probtrackx2")
    result = find(tmp_path)
    assert names(result) == ["s1"]
    assert [(one.subject, one.reason) for one in result.rejected] == [
        ("s2", "can't be read: Permission denied")
    ]
    refuse(tmp_path)
    with pytest.raises(CohortError, match="can't be read: Permission denied"):
        find(tmp_path)


# ---------------------------------------------------------------------------------------- choice


@pytest.fixture
def abc(tmp_path) -> Path:
    touch(tmp_path, *(f"{name}/tdi.nii" for name in "abc"))
    return tmp_path


PATTERN = "{subject}/tdi.nii"


def test_subjects_by_name(abc):
    result = find(abc, cohort={"pattern": PATTERN, "subjects": ["c", "a", "zed"]})
    assert names(result) == ["a", "c"]
    assert [one.subject for one in result.rejected] == ["zed"]
    assert "no map at" in result.rejected[0].reason


def test_subjects_by_text_file(abc):
    (abc / "list.txt").write_text("\ufeffa\n# comment\n\n  c \na\n", encoding="utf-8")
    assert names(find(abc, cohort={"pattern": PATTERN, "subjects": "list.txt"})) == ["a", "c"]


def test_exclude(abc, caplog):
    result = find(abc, cohort={"pattern": PATTERN, "exclude": ["b", "typo"]})
    assert names(result) == ["a", "c"]
    assert result.without_map == ()
    assert "learned_atlas.cohort.exclude names no subject: typo" in caplog.text


def test_composed_and_decomposed_names_are_the_same(tmp_path):
    touch(tmp_path, unicodedata.normalize("NFD", "Zoë") + "/tdi.nii")
    for choice in ({"subjects": ["Zoë"]}, {"exclude": ["Zoë"]}):
        result = find(tmp_path, cohort={"pattern": PATTERN, **choice})
        assert len(result.candidates) == ("subjects" in choice)
        assert result.rejected == ()


def test_subjects_by_csv(abc):
    (abc / "maps.csv").write_text("subject,path\nx, a/tdi.nii\n\n# no\ny,b/tdi.nii\n")
    result = find(abc, cohort={"subjects": "maps.csv"})
    assert (names(result), files(result, abc)) == (["x", "y"], ["a/tdi.nii", "b/tdi.nii"])


def test_csv_with_tracts(abc):
    (abc / "maps.csv").write_text("x,a/tdi.nii,af\nx,b/tdi.nii,cst\ny,c/tdi.nii,af\n")
    values = {"model": {"channels": 2}, "cohort": {"subjects": "maps.csv"}}
    result = find(abc, **values)
    assert result.tracts == ("af", "cst")
    assert [one.channel for one in result.candidates[0].maps] == [0, 1]
    assert [(one.subject, one.reason) for one in result.rejected] == [("y", "no map of tract cst")]


@pytest.mark.parametrize("parts", [True, False])
def test_subjects_by_a_data_list(abc, parts):
    entries = [{"image": "a/tdi.nii", "label": "x.nii"}, {"image": "b/tdi.nii", "subject": "y"}]
    listed = {"training": entries, "validation": [{"image": "c/tdi.nii"}]} if parts else entries
    (abc / "data.json").write_text(json.dumps(listed))
    result = find(abc, cohort={"pattern": PATTERN, "subjects": "data.json"})
    assert (names(result), files(result, abc)) == (["a", "y"], ["a/tdi.nii", "b/tdi.nii"])


def test_a_number_in_a_data_list_is_a_name(abc):
    (abc / "data.json").write_text('[{"image": "a/tdi.nii", "subject": 100310}]')
    assert names(find(abc, cohort={"subjects": "data.json"})) == ["100310"]


def test_data_list_with_tracts(abc):
    entries = [
        {"image": f"{folder}/tdi.nii", "subject": subject, "tract": tract}
        for folder, subject, tract in (("a", "x", "af"), ("b", "x", "cst"), ("c", "y", "af"))
    ]
    (abc / "data.json").write_text(json.dumps(entries))
    result = find(abc, model={"channels": 2}, cohort={"subjects": "data.json"})
    assert result.tracts == ("af", "cst")
    assert [one.channel for one in result.candidates[0].maps] == [0, 1]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("data.json", "{", "is not JSON"),
        ("data.json", "[" * 100_000, "is not JSON"),
        ("data.json", '{"validation": []}', "must be a list of entries"),
        ("data.json", "[]", "lists no map"),
        ("data.json", '[{"image": "x"}, {"label": "y"}]', "entry 2: must have the path of one map"),
        ("data.json", '["x"]', "entry 1: must have the path"),
        ("data.json", '[{"image": "x", "subject": 3.5}]', "entry 1: must have the path"),
        ("data.json", '[{"image": "x", "subject": true}]', "entry 1: must have the path"),
        ("data.json", '[{"image": "x"}, {"image": "x"}]', "entry 2: x is listed twice"),
        ("data.json", None, "can't be read: No such file"),
        ("list.txt", "\n", "names no subject"),
        ("maps.csv", "subject,path\n", "lists no map"),
        ("maps.csv", "a\n", "line 1: must be subject,path"),
        ("maps.csv", "a,x\nb,\n", "line 2: must be subject,path"),
        ("maps.csv", "a,x,af\nb,y\n", "a tract in every row or in none"),
        ("maps.csv", "a,x\nb,x\n", "line 2: x is listed twice"),
        ("maps.csv", "a,x\na,y\n", "subject a has 2 runs"),
        ("maps.csv", None, "can't be read: No such file"),
        ("list.txt", None, "can't be read: No such file"),
    ],
)
def test_lists_that_are_none(abc, name, text, words):
    if text is not None:
        (abc / name).write_text(text)
    with pytest.raises(CohortError, match=words):
        find(abc, cohort={"pattern": PATTERN, "subjects": name})


@pytest.mark.parametrize("name", ["../a", "atlas", ".a"])
def test_csv_names_become_file_names(abc, name):
    (abc / "maps.csv").write_text(f"{name},a/tdi.nii\nb,b/tdi.nii\n")
    result = find(abc, cohort={"subjects": "maps.csv"})
    assert names(result) == ["b"]
    assert result.rejected[0].subject == name
