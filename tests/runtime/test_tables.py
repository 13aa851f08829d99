"""Cells that a spreadsheet would run as a formula are shown as text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.runtime.tables import cell, write_table

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "'=1+1", '"=1', "＝1+1", "－2", "＠x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_would_be_a_formula_gets_an_apostrophe(text: str) -> None:
    assert cell(text).startswith("'")
    assert text in cell(text)


@pytest.mark.parametrize("value", [-0.5, -3, 1e-9, None, True, "sub-01", "a=b", "Müller", "n/a"])
def test_numbers_and_common_names_stay_as_they_are(value: object) -> None:
    assert cell(value) is value


@given(st.text())
def test_no_cell_begins_with_a_sign_or_breaks_its_line(text: str) -> None:
    result = cell(text)
    assert not result.lstrip(" '\"").startswith(("=", "+", "-", "@")) or result.startswith("'")
    assert result.isprintable()


def test_a_table_is_read_back_with_a_row_a_line() -> None:
    file = io.StringIO(newline="")
    rows = [{"subject": 'a\n=b,"c"', "dice": -0.25}, {"subject": "=HYPERLINK(1)"}]
    write_table(file, ["subject", "dice"], rows)
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [
        ["subject", "dice"],
        ['a\\n=b,"c"', "-0.25"],
        ["'=HYPERLINK(1)", ""],
    ]
    assert len(file.getvalue().splitlines()) == 3
