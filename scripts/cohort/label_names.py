"""Names of labels, from a table of BIDS or a colour table of FreeSurfer."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from scripts.errors import CohortError
from scripts.runtime.input_files import read_text

__all__ = ["read_label_names"]

_LONGEST = 5_000_000  # bytes of a table


def read_label_names(path: str | Path, setting: str) -> dict[int, str]:
    """Read the name of each label.

    Args:
        path: ``.tsv`` or ``.csv`` with the columns ``index`` and ``name`` (BIDS), or a text file of
            lines ``<number> <name> ...`` (FreeSurfer's colour tables).
        setting: that names the file, for messages.

    Raises:
        CohortError: it can't be read, or names a label twice.
    """
    file = Path(path)
    try:
        text = read_text(file, _LONGEST)
    except UnicodeDecodeError as error:
        raise CohortError(f"{path} ({setting}): is not UTF-8 text; save it as UTF-8") from error
    if file.suffix.lower() in (".tsv", ".csv"):
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        try:
            table = csv.DictReader(text.splitlines(), delimiter=delimiter)
            columns, entries = set(table.fieldnames or ()), list(table)
        except csv.Error as error:  # such as a quotation mark that never ends
            raise CohortError(f"{path} ({setting}): can't be read: {error}") from error
        if not {"index", "name"} <= columns:
            raise CohortError(f"{path} ({setting}): must have the columns index and name")
        rows = [(row["index"], row["name"]) for row in entries]
    else:
        lines = (line.split() for line in text.splitlines() if not line.lstrip().startswith("#"))
        rows = [(words[0], words[1]) for words in lines if len(words) > 1]
    names: dict[int, str] = {}
    for number, name in rows:
        if number is None or re.fullmatch(r"\s*-?[0-9]{1,18}\s*", number) is None or not name:
            raise CohortError(
                f"{path} ({setting}): has a row with index {number!r} and name {name!r}; must be a "
                "whole number and a name"
            )
        if int(number) in names:
            raise CohortError(f"{path} ({setting}): names label {int(number)} twice")
        names[int(number)] = " ".join(name.split())
    return names
