"""JSON with a checksum: each changed bit is noticed, older files are read."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.runtime.checked_json import read_checked, write_checked
from scripts.runtime.input_files import FileError

KEYS = frozenset({"matrix", "loss", "who"})
VALUES = {"matrix": [[1.5, -2e-9], [0.1, 3]], "loss": 0.25, "who": "Zoë"}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_checked(tmp_path / "x.json", VALUES)
    assert read_checked(tmp_path / "x.json", KEYS) == VALUES
    (tmp_path / "x.json").write_text(json.dumps(VALUES))  # by an earlier version
    assert read_checked(tmp_path / "x.json", KEYS) == VALUES


def test_no_flipped_bit_gives_other_values(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_checked(path, VALUES)
    raw = path.read_bytes()
    refused = 0
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert read_checked(path, KEYS) == VALUES  # white space alone
        except (FileError, ValueError):
            refused += 1
    assert refused > 0.9 * 8 * len(raw)
