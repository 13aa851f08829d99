"""Files that change while a job reads them are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.errors import CohortError
from scripts.runtime.storage import file_hash
from scripts.runtime.watched_files import WatchedFiles


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    watched = WatchedFiles([tmp_path / "a", str(tmp_path / "b"), tmp_path / "a"])
    assert watched.sha256(str(tmp_path / "a")) == file_hash(tmp_path / "a")
    watched.check()


@pytest.mark.parametrize("change", ["other", "gone", "folder", "pipe"])
def test_a_change_is_reported_with_the_files_name(change: str, tmp_path: Path) -> None:
    path = tmp_path / "map.nii.gz"
    path.write_text("x")
    watched = WatchedFiles([path])
    path.unlink()
    {
        "other": lambda: path.write_text("y"),
        "gone": lambda: None,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[change]()
    with pytest.raises(CohortError, match=r"map\.nii\.gz: "):
        watched.check()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="can't be read"):
        WatchedFiles([tmp_path])
