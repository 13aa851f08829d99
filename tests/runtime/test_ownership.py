"""Publishing replaces what this bundle published, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.errors import ConfigurationError, StorageError
from scripts.runtime.ownership import MARK, NeededFiles, check_earlier_report, write_mark
from scripts.runtime.storage import (
    check_not_root,
    check_replaceable,
    check_writable,
    publish_folder,
)

OLD = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild" / "learned_atlas"


def publish(folder: Path, *names: str) -> None:
    with publish_folder(folder) as staging:
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text("ours")


def test_what_was_published_is_replaced_and_lists_itself(tmp_path: Path) -> None:
    publish(tmp_path / "a", "map", "fields/one")
    check_replaceable(tmp_path / "a")
    publish(tmp_path / "a", "other")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {MARK, "other"}
    listed = json.loads((tmp_path / "a" / MARK).read_text())
    assert listed == {"name": "tract_density_atlas", "published": ["other"]}


ADDED: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda path: path.write_text("mine"),
    "fields/notes.txt": lambda path: path.write_text("mine"),
    ".hidden": lambda path: path.write_text("mine"),
    "link": lambda path: path.symlink_to("/nowhere"),
    "pipe": os.mkfifo,
    "anat/T1w.nii.gz": lambda path: (path.parent.mkdir(), path.write_text("T1")),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_was_added_is_named_and_stays(name: str, tmp_path: Path) -> None:
    publish(tmp_path / "a", "map", "fields/one")
    ADDED[name](tmp_path / "a" / name)
    for refused in (check_replaceable, lambda folder: publish(folder, "new")):
        with pytest.raises(
            StorageError, match=rf"contains {name}, which this bundle did not publish"
        ):
            refused(tmp_path / "a")
    assert os.path.lexists(tmp_path / "a" / name)
    assert (tmp_path / "a" / "map").read_text() == "ours"


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "._map", ".nfs0000123"])
def test_what_systems_leave_is_no_content(name: str, tmp_path: Path) -> None:
    publish(tmp_path / "a", "map")
    (tmp_path / "a" / name).write_text("")
    publish(tmp_path / "a", "other")


@pytest.mark.parametrize("mark", [None, "{", "[]", '{"published": ["notes.txt"]}'])
def test_a_folder_of_another_kind_is_refused(mark: str | None, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    if mark is not None:
        (tmp_path / MARK).write_text(mark)
    with pytest.raises(StorageError, match=r"notes\.txt"):
        check_replaceable(tmp_path)


def test_a_mark_that_is_a_link_marks_nothing(tmp_path: Path) -> None:
    publish(tmp_path / "a", "notes.txt")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    (tmp_path / "b" / MARK).symlink_to(tmp_path / "a" / MARK)
    with pytest.raises(StorageError, match=r"notes\.txt"):
        check_replaceable(tmp_path / "b")


def test_content_that_comes_while_the_job_runs_is_kept(tmp_path: Path) -> None:
    publish(tmp_path / "a", "map")
    with (
        pytest.raises(StorageError, match=r"notes\.txt"),
        publish_folder(tmp_path / "a") as staging,
    ):
        (staging / "map").write_text("new")
        (tmp_path / "a" / "notes.txt").write_text("mine")
    assert (tmp_path / "a" / "map").read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_older_atlas_is_known_by_its_description(tmp_path: Path) -> None:
    copy = tmp_path / "learned_atlas"
    for path in sorted(OLD.rglob("*")):
        target = copy / path.relative_to(OLD)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(path.read_bytes())
    (copy / "template-2").mkdir()  # of a template without subjects
    check_replaceable(copy)
    (copy / "fields" / "mine.nii.gz").write_text("x")
    with pytest.raises(StorageError, match=r"contains fields/mine\.nii\.gz, which"):
        check_replaceable(copy)


def test_an_older_registration_is_known_by_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "registered" / "sub-1"
    names = (
        "sub-1_from-subject_to-template_mode-image_xfm.nii.gz",
        "sub-1_space-template_density.nii.gz",
        "atlas_in_patient_space/atlas_mean.nii.gz",
    )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours")
    with pytest.raises(StorageError):
        check_replaceable(folder)
    report = {"subject": "sub-1", "maps": [], "weights": ""}
    (folder / "registration.json").write_text(json.dumps(report))
    check_replaceable(folder)
    (folder / "T1w.nii.gz").write_text("T1")
    with pytest.raises(StorageError, match=r"T1w\.nii\.gz"):
        check_replaceable(folder)


def test_a_part_of_a_published_folder_may_be_published_by_itself(tmp_path: Path) -> None:
    publish(tmp_path / "sub", "field", "carried/map")
    publish(tmp_path / "sub" / "carried", "map", "another")
    publish(tmp_path / "sub", "field", "carried/map")
    assert not (tmp_path / "sub" / "carried" / "another").exists()


def test_inputs_never_lie_in_what_is_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "a", "deep/map")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "deep")
    for given in ("a", "a/deep", "a/deep/map", "link/map", "link", "a/later/map"):
        with pytest.raises(StorageError, match=f"needs {tmp_path / given}, which lies there"):
            check_replaceable(tmp_path / "a", inputs=[tmp_path / "b", tmp_path / given])
    check_replaceable(tmp_path / "a", inputs=[tmp_path, tmp_path / "b" / "map"])


def test_an_input_below_a_folder_that_is_yet_to_be_made_is_found(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lies there"):
        check_replaceable(tmp_path / "new", inputs=[tmp_path / "new" / "models"])


def test_many_inputs_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: seen.append(self) or stat(self, **more))
    NeededFiles(tmp_path / f"sub-{number}" / "map" for number in range(100))
    assert len(seen) < 450  # not each of the folders above, for each file


def test_a_report_of_another_program_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    check_earlier_report(path, lambda about: False)  # there is none
    path.write_text('{"metrics": {}}')
    check_earlier_report(path, lambda about: "metrics" in about)
    for text in ("{}", "no JSON", "[1]"):
        path.write_text(text)
        with pytest.raises(StorageError, match=r"result\.json: would be replaced"):
            check_earlier_report(path, lambda about: "metrics" in about)


def test_an_empty_path_is_an_error() -> None:
    for path in ("", " "):
        with pytest.raises(ConfigurationError, match="is empty"):
            check_writable(path)
    with pytest.raises(ConfigurationError, match="root of the file system"):
        check_not_root("/run_state")
    check_not_root("run_state")
    check_not_root("/data/run_state")


def test_a_mark_lists_links_and_leaves_out_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    write_mark(tmp_path)
    assert json.loads((tmp_path / MARK).read_text())["published"] == ["link"]
