"""Readers share a folder that no run writes to meanwhile."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.errors import StorageError
from scripts.runtime.lock import LOCK_FILE, FolderLock, SharedLock, lock_folders

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from scripts.runtime.lock import FolderLock, SharedLock
lock = {"reader": SharedLock, "writer": FolderLock}[sys.argv[1]](sys.argv[2])
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def held(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Another process that reads or writes there until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(folder)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_readers_share_and_a_run_waits_for_them(tmp_path: Path) -> None:
    other = held("reader", tmp_path)
    own = SharedLock(tmp_path)
    with pytest.raises(StorageError, match=f"using this folder: process {os.getpid()}"):
        FolderLock(tmp_path)
    other.communicate()
    with pytest.raises(StorageError):
        FolderLock(tmp_path)  # the other's end took nothing from this one
    own.release()
    own.release()
    assert list(tmp_path.iterdir()) == []
    FolderLock(tmp_path).release()


def test_a_reader_is_refused_while_a_run_is_at_work(tmp_path: Path) -> None:
    run = held("writer", tmp_path)
    with pytest.raises(StorageError, match=f"process {run.pid} on .*; wait for it"):
        SharedLock(tmp_path)
    run.communicate()
    SharedLock(tmp_path).release()


def test_a_killed_reader_leaves_nothing_to_clear(tmp_path: Path) -> None:
    reader = held("reader", tmp_path)
    reader.kill()
    reader.communicate()
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_reads_its_own_folder(tmp_path: Path) -> None:
    (lock,) = lock_folders([tmp_path])
    SharedLock(tmp_path).release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_folder_closed_to_us_is_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def closed(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "no", path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", closed)
    SharedLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="is a link; delete it"):
        SharedLock(tmp_path)
    assert not (tmp_path / "precious").exists()


def test_without_flock_a_run_at_work_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    SharedLock(tmp_path).release()
    owner = {"pid": os.getppid(), "host": os.uname().nodename, "since": 1}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    with pytest.raises(StorageError, match=f"process {os.getppid()}"):
        SharedLock(tmp_path)
