"""Names of labels: the tables that are read, and those that are refused."""

from __future__ import annotations

import pytest

from scripts.cohort.label_names import read_label_names
from scripts.errors import CohortError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dseg.tsv", "index\tname\tcolor\n17\tLeft hippocampus\t#fff\n53\tRight  hippocampus\t\n"),
        ("dseg.csv", "name,index\nLeft hippocampus,17\nRight hippocampus,53\n"),
    ],
)
def test_tables_with_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    result = read_label_names(tmp_path / name, "key")
    assert result == {17: "Left hippocampus", 53: "Right hippocampus"}


def test_colour_tables_of_freesurfer(tmp_path):
    path = tmp_path / "lut.txt"
    path.write_text("#No. Label R G B A\n\n17  Left-Hippocampus 220 216 20 0\n53 Right 1 1 1 0\n")
    assert read_label_names(path, "key") == {17: "Left-Hippocampus", 53: "Right"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "label\tname\n1\tx\n", "must have the columns index and name"),
        ("a.tsv", "index\tname\n1.5\tx\n", "a row with index '1.5' and name 'x'"),
        ("a.tsv", "index\tname\n1\tx\n1\ty\n", "names label 1 twice"),
        ("a.txt", "one two\n", "a row with index 'one'"),
        ("a.tsv", "index\tname\n1\tKörper\n", "is not UTF-8 text; save it as UTF-8"),
        ("a.tsv", 'index\tname\n1\t"' + "x" * 200_000, "can't be read: field larger than"),
    ],
)
def test_tables_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(CohortError, match=r"a\.t") as caught:
        read_label_names(tmp_path / name, "learned_atlas.cohort.label_names")
    assert message in str(caught.value)
