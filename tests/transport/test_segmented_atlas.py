"""Atlases in every format, and messages for files that are not atlases."""

import json

import numpy as np
import pytest

from scripts.errors import ConfigurationError
from scripts.tractograms import Streamlines, TractogramError, write_tractogram
from scripts.transport.segmented_atlas import file_names, read_atlas


def lines(count, start=0.0):
    return Streamlines.of(
        [np.linspace((start + i, 0, 0), (start + i, 9, 0), 4, dtype=np.float32)
         for i in range(count)]
    )  # fmt: skip


def values(*numbers):
    return np.array(numbers, np.float32)


@pytest.mark.parametrize("suffix", ["trk", "trx", "vtk"])
def test_a_value_per_streamline_with_gaps_and_names(tmp_path, suffix):
    path, names = tmp_path / f"atlas.{suffix}", tmp_path / "names.json"
    write_tractogram(path, lines(5).with_data(bundle=values(7, 2, 7, -1, 40)))
    names.write_text(json.dumps({"7": "CST left", "40": "AF"}))
    atlas = read_atlas(path, "bundle", str(names))
    assert atlas.ids.tolist() == [2, 7, 40]
    assert atlas.classes.tolist() == [1, 0, 1, 2]
    assert atlas.names == ("2", "CST left", "AF")
    assert atlas.unlabelled == 1
    assert atlas.streamlines.points[::4, 0].tolist() == [0, 1, 2, 4]


def test_a_text_file_of_numbers_as_mrtrix_has_them(tmp_path):
    path, text = tmp_path / "atlas.tck", tmp_path / "labels.txt"
    write_tractogram(path, lines(3))
    text.write_text("4 4\n9\n")
    assert read_atlas(path, str(text), None).classes.tolist() == [0, 0, 1]
    text.write_text("4 4")
    with pytest.raises(TractogramError, match=r"labels\.txt: has 2 numbers, .* has 3 streamlines"):
        read_atlas(path, str(text), None)


def test_groups_of_a_trx(tmp_path):
    path = tmp_path / "atlas.trx"
    groups = {"CST": np.array([2, 0]), "AF": np.array([3])}
    write_tractogram(path, lines(4), groups=groups)
    atlas = read_atlas(path, "label", None)
    of = {atlas.names[c] for c in atlas.classes}
    assert of == {"CST", "AF"}
    assert atlas.unlabelled == 1
    assert [atlas.names[c] for c in atlas.classes] == ["CST", "CST", "AF"]


def test_a_folder_with_a_file_for_each_class(tmp_path):
    write_tractogram(tmp_path / "b.tck", lines(2))
    write_tractogram(tmp_path / "a.trk", lines(3).with_data(fa=values(1, 2, 3)))
    (tmp_path / "notes.txt").write_text("not a tractogram")
    atlas = read_atlas(tmp_path, "label", None)
    assert atlas.names == ("a", "b")
    assert atlas.classes.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"has no per-streamline value label \(it has: none\)"),
        ({"bundle": values(1, 2)}, r"it has: bundle\)"),
        ({"label": values(1, 1.5)}, r"label of streamline 1 is 1\.5; must be a whole number"),
        ({"label": values(1, np.nan)}, r"label of streamline 1 is nan"),
        ({"label": values(-1, -2)}, r"has no streamline with a class"),
        ({"label": np.ones((2, 3), np.float32)}, r"has 3 values of label per streamline"),
    ],
)
def test_what_has_no_classes_is_reported(tmp_path, data, message):
    path = tmp_path / "atlas.trk"
    write_tractogram(path, lines(2).with_data(**data))
    with pytest.raises(TractogramError, match=message) as caught:
        read_atlas(path, "label", None)
    assert str(path) in str(caught.value)


def test_an_empty_folder_twins_and_bad_names_are_reported(tmp_path):
    with pytest.raises(TractogramError, match="contains no tractogram"):
        read_atlas(tmp_path, "label", None)
    write_tractogram(tmp_path / "a.tck", lines(2))
    write_tractogram(tmp_path / "a.trk", lines(2))
    with pytest.raises(TractogramError, match="contains a in more than one format"):
        read_atlas(tmp_path, "label", None)
    (tmp_path / "a.tck").unlink()
    (tmp_path / "names.json").write_text("[1, 2]")
    with pytest.raises(ConfigurationError, match=r"label_transfer\.names"):
        read_atlas(tmp_path, "label", str(tmp_path / "names.json"))


def test_file_names_are_safe_and_differ():
    assert file_names(("CST left", "cst_left", "../x", "outliers", "?", "AF.L")) == (
        "CST_left", "cst_left_2", "x", "outliers_2", "class", "AF.L",
    )  # fmt: skip
