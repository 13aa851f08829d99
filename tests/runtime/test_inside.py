"""Names from outside lead nowhere but into their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.runtime.input_files import FileError
from scripts.runtime.inside import entries, inside, name_reason

OUT = [
    "..", "../x", "a/../../x", "/etc/passwd", "/dev/zero", "~/x", "~root/x", "C:/x", "C:\\x",
    "a\\b", "", ".", "a//b", "./a", "a/.", "a\0b", "a\nb", "\x1b[2J", " ", "x" * 300, "\udfff",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a folder, a pipe and links in and out."""
    place = tmp_path / "atlas"
    (place / "fields").mkdir(parents=True)
    (place / "fields" / "a.txt").write_text("a")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "b.txt").write_text("secret")
    (place / "within").symlink_to("fields/a.txt")
    (place / "out").symlink_to("../secret.txt")
    (place / "out_folder").symlink_to("../secrets")
    (place / "circle").symlink_to("circle")
    (place / "null").symlink_to("/dev/null")
    os.mkfifo(place / "pipe")
    return place


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out_are_refused_and_named(folder: Path, name: str) -> None:
    with pytest.raises(FileError) as caught:
        inside(folder, name, "atlas.json")
    assert "which atlas.json names" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [None, 3, ["a"], {}])
def test_what_is_no_text_is_refused(folder: Path, name: object) -> None:
    with pytest.raises(FileError, match="is not a name"):
        inside(folder, name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("out", "a link that leads out"),
        ("out_folder/b.txt", "a link that leads out"),
        ("null", "a link that leads out"),
        ("circle", "can't be followed"),
        ("pipe", "is a pipe"),
        ("fields", "is a folder"),
    ],
)
def test_links_out_and_special_files_are_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(FileError, match=why):
        inside(folder, name)


def test_what_lies_inside_is_found_through_links_that_stay_there(folder: Path) -> None:
    assert inside(folder, "fields/a.txt").read_text() == "a"
    assert inside(folder, "within").read_text() == "a"
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert inside(link, "fields/a.txt").read_text() == "a"


def test_what_is_not_there_may_be_written(folder: Path) -> None:
    assert inside(folder, "fields/new.txt") == folder / "fields/new.txt"
    assert inside(folder / "none", "sub-01", kind="folder") == folder / "none/sub-01"
    with pytest.raises(FileError, match="must be a folder"):
        inside(folder, "fields/a.txt", kind="folder")


@given(st.text(max_size=20))
def test_whatever_the_name_the_path_stays_inside(name: str) -> None:
    root = Path("/nowhere/at/all")
    try:
        result = inside(root, name)
    except FileError:
        return
    assert Path(os.path.normpath(result)).is_relative_to(root)
    assert result != root


def test_all_that_lies_in_a_folder_is_reported_with_its_kind(folder: Path) -> None:
    (folder / "empty" / "deep").mkdir(parents=True)
    result = {one.name: one.what for one in entries(folder)}
    assert result == {
        "circle": "link", "empty/deep": "folder", "fields/a.txt": "file", "null": "link",
        "out": "link", "out_folder": "link", "pipe": "pipe", "within": "link",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sub-01", "Müller", "a b", "$x", "@x", "%x", "{}", "...", "a.b"])
def test_common_and_odd_names_are_names(name: str) -> None:
    assert name_reason(name) is None
