"""What keeps a folder from being replaced is reported before any work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.errors import StorageError
from scripts.runtime import obstacles
from scripts.runtime.obstacles import Obstacles
from scripts.runtime.storage import check_replaceable


@pytest.mark.parametrize("what", ["file", "broken link", "pipe"])
def test_something_else_of_that_name_is_in_the_way(what: str, tmp_path: Path) -> None:
    path = tmp_path / "atlas"
    {
        "file": lambda: path.write_text("x"),
        "broken link": lambda: path.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(path),
    }[what]()
    with pytest.raises(StorageError, match=r"atlas: can't be written: a .* is in the way"):
        check_replaceable(path)


@pytest.mark.parametrize("place", ["", "/below it"])
def test_a_mount_point_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder mounted over another has its file system's device: only the system's list tells."""
    folder = tmp_path / "my atlas"
    folder.mkdir()
    name = f"{folder}{place}".replace(" ", r"\040")
    table = tmp_path / "mountinfo"
    table.write_text(f"22 1 0:21 / / rw - ext4 a rw\n30 22 0:21 / {name} rw - ext4 a rw\n")
    monkeypatch.setattr(obstacles, "_MOUNTS", table)
    with pytest.raises(StorageError, match="is a mount point"):
        Obstacles().check(folder)
    (tmp_path / "other").mkdir()
    Obstacles().check(tmp_path / "other")


def test_a_folder_of_another_spelling_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that ignores case: the folder is there, its name isn't listed."""
    (tmp_path / "Sub-1").mkdir()
    (tmp_path / "sub-1").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([tmp_path / "Sub-1"]))
    monkeypatch.setattr(obstacles, "_is_same", lambda one, other: True)
    with pytest.raises(StorageError, match="this file system takes it for Sub-1"):
        Obstacles().check(tmp_path / "sub-1")


def test_another_users_folder_in_a_sticky_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o1777)
    folder = tmp_path / "atlas"
    folder.mkdir()
    Obstacles().check(folder)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(StorageError, match="belongs to another user"):
        Obstacles().check(folder)


def test_a_folder_whose_files_cannot_be_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The access check is replaced: for root no folder is closed."""
    folder = tmp_path / "atlas"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    with pytest.raises(StorageError, match="no permission to remove its content"):
        check_replaceable(folder)


def test_an_immutable_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    folder.mkdir()
    if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("needs root, and a file system with flags")
    try:
        with pytest.raises(StorageError, match="immutable"):
            Obstacles().check(folder)
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
