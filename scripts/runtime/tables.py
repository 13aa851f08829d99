"""Tables for spreadsheets, in which text from outside is never a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from scripts.errors import shown

__all__ = ["cell", "write_table"]

_FORMULA = tuple("=+-@＝＋－＠")


def cell(value: Any) -> Any:
    """A cell that a spreadsheet shows and doesn't run: such text gets an apostrophe in front.

    Numbers stay numbers, below 0 as well.

    Example:
        >>> cell("=1+1"), cell(-0.5), cell("sub-01")
        ("'=1+1", -0.5, 'sub-01')
    """
    if not isinstance(value, str):
        return value
    text = shown(value)
    # Spreadsheets ignore leading spaces and quotes.
    return f"'{text}" if text.lstrip(" '\"").startswith(_FORMULA) else text


def write_table(
    file: TextIO,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    restval: str = "",
    tabs: bool = False,
) -> None:
    """Write rows as CSV under a line of names, each cell by `cell`.

    Args:
        file: opened with ``newline=""``.
        columns: keys of the rows.
        rows: a value a column.
        restval: of a column that a row lacks.
        tabs: separate cells by tabs, as in BIDS's tables.
    """
    writer = csv.writer(file, "excel-tab", lineterminator="\n") if tabs else csv.writer(file)
    writer.writerow([cell(name) for name in columns])
    writer.writerows([[cell(row.get(name, restval)) for name in columns] for row in rows])
