"""``atlas.json``: what every kind of atlas says, and the hashes beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.cohort import Cohort
from scripts.publishing.description import description, write_description
from scripts.publishing.provenance import description_hash
from scripts.runtime.storage import file_hash
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def folder(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Path:
    """An atlas of two files, one of whose hashes was known."""
    root = tmp_path / "atlas"
    (root / "fields").mkdir(parents=True)
    (root / "atlas_mean.nii.gz").write_bytes(b"mean")
    (root / "fields" / "a.nii.gz").write_bytes(b"field")
    about = description("averaged", make_cohort(), make_settings(), {"maps": {}}, ["numpy"])
    write_description(root, about, {"fields/a.nii.gz": "known"})
    return root


def test_every_other_file_has_its_hash_and_what_is_known_is_not_read(folder: Path) -> None:
    files = json.loads((folder / "atlas.json").read_text())["files"]
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == written - {"atlas.json"}
    assert files.pop("fields/a.nii.gz") == "known"
    assert files == {name: file_hash(folder / name) for name in files}
    assert [*files] == sorted(files)


def test_the_description_has_a_hash_of_all_that_it_says(folder: Path) -> None:
    about = json.loads((folder / "atlas.json").read_text())
    assert about["description_sha256"] == description_hash(about)
    about["n_subjects"] += 1
    assert about["description_sha256"] != description_hash(about)


def test_its_kind_may_say_more_and_libraries_are_those_asked_for(folder: Path) -> None:
    about = json.loads((folder / "atlas.json").read_text())
    assert (about["kind"], about["maps"]) == ("averaged", {})
    assert "numpy" in about["versions"] and "torch" not in about["versions"]
