"""Two processes and one folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.errors import StorageError
from scripts.runtime import lock
from scripts.runtime.lock import LOCK_FILE, FolderLock, lock_folders

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from scripts.runtime.lock import lock_folders
lock_folders([sys.argv[1]])
print("held", flush=True)
time.sleep(120)
"""
RACE = """
import errno, fcntl, json, multiprocessing, pathlib, socket, sys

def fails(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = fails
from scripts.errors import StorageError
from scripts.runtime.lock import LOCK_FILE, lock_folders

def start(folder, all_there, all_tried, winners):
    all_there.wait()
    try:
        lock_folders([folder])
    except StorageError:
        pass
    else:
        with winners.get_lock():
            winners.value += 1
    all_tried.wait()

fork = multiprocessing.get_context("fork")
for turn in range(20):
    folder = pathlib.Path(sys.argv[1], str(turn))
    if len(sys.argv) == 3:
        folder.mkdir()
        said = {"pid": int(sys.argv[2]), "host": socket.gethostname(), "since": 1}
        (folder / LOCK_FILE).write_text(json.dumps(said))
    shared = folder, fork.Barrier(4), fork.Barrier(4), fork.Value("i", 0)
    runs = [fork.Process(target=start, args=shared) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    print(shared[-1].value)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start another process that holds a folder."""
    started = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def owned_by(folder: Path, pid: int, host: str, age: float) -> None:
    folder.mkdir(exist_ok=True)
    record = {"pid": pid, "host": host, "since": time.time() - age}
    (folder / LOCK_FILE).write_text(json.dumps(record))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def fails(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)


def test_a_second_process_is_refused_at_once_with_owner_age_and_remedy(
    tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "out"
    other = hold(folder)
    with pytest.raises(StorageError) as refused:  # at once: it doesn't wait for the other
        FolderLock(folder)
    text = str(refused.value)
    assert "\n" not in text
    for part in (
        f"process {other.pid} on {socket.gethostname()}, for ",
        f"delete {folder / LOCK_FILE}",
    ):
        assert part in text
    assert (folder / LOCK_FILE).exists()  # the refused one didn't touch it


def test_an_owner_that_has_yet_to_write_its_name_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / LOCK_FILE).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(
            "scripts.runtime.lock.time.sleep", lambda _: owned_by(tmp_path, 12345, "elsewhere", 0)
        )
        with pytest.raises(StorageError, match="process 12345 on elsewhere"):
            FolderLock(tmp_path)


def test_an_owner_that_never_says_its_name_is_unknown(tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="an unknown process; wait for it"):
            FolderLock(tmp_path)


def test_a_killed_run_leaves_nothing_to_clear(
    tmp_path: Path,
    hold: Callable[[Path], subprocess.Popen[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = hold(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with caplog.at_level(logging.WARNING):
        (lock,) = lock_folders([tmp_path])
    assert f"taken over from process {other.pid}" in caplog.text
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_released_folder_is_free_for_others_and_as_it_was(
    tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    (lock,) = lock_folders([tmp_path / "a" / "b"])
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path / "a" / "b")


def test_what_was_put_there_stays(tmp_path: Path) -> None:
    (lock,) = lock_folders([tmp_path / "a" / "b"])
    (tmp_path / "a" / "x").write_text("1")
    lock.release()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


def test_jobs_of_one_process_share_a_folder_until_the_last_is_done(tmp_path: Path) -> None:
    first, again = (*lock_folders([tmp_path]), *lock_folders([tmp_path]))
    first.release()
    assert (tmp_path / LOCK_FILE).exists()
    again.release()
    assert not (tmp_path / LOCK_FILE).exists()


def test_all_folders_or_none(tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]) -> None:
    hold(tmp_path / "taken")
    with pytest.raises(StorageError, match="taken: another run"):
        lock_folders([tmp_path / "free", tmp_path / "taken"])
    assert not (tmp_path / "free").exists()


def test_a_forked_child_neither_frees_nor_takes_its_parents_folder(tmp_path: Path) -> None:
    (lock,) = lock_folders([tmp_path])
    child = os.fork()
    if child == 0:
        lock.release()
        try:
            lock_folders([tmp_path])
        except StorageError:
            os._exit(0 if (tmp_path / LOCK_FILE).exists() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()


def test_a_killed_runs_children_do_not_keep_its_folder(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom scripts.runtime.lock import lock_folders\n"
        "lock_folders([sys.argv[1]])\n"
        "child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(120)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            FolderLock(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_run_that_ends_frees_its_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from scripts.runtime.lock import lock_folders; lock_folders([sys.argv[1]])"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_release_leaves_the_file_of_whoever_came_after(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    (tmp_path / LOCK_FILE).unlink()  # as the message advises, too early
    owned_by(tmp_path, 12345, "elsewhere", 0)
    first.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == 12345


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / LOCK_FILE).symlink_to(tmp_path / target)
    with pytest.raises(StorageError) as refused:
        FolderLock(folder)
    assert str(refused.value) == (
        f"{folder}: can't be locked: {folder / LOCK_FILE} is a link; delete it"
    )
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="can't be locked"):
        FolderLock(tmp_path / "file" / "a")


# -- where the file system has no locks --------------------------------------------------------


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_file_is_the_lock(tmp_path: Path) -> None:
    (lock,) = lock_folders([tmp_path / "a"])
    assert json.loads((tmp_path / "a" / LOCK_FILE).read_text())["pid"] == os.getpid()
    with pytest.raises(StorageError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path / "a")
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_dead_process_of_this_host_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = ended_process()
    owned_by(tmp_path, dead, socket.gethostname(), 3 * 3600 + 5 * 60)
    FolderLock(tmp_path).release()
    assert f"taken over from process {dead} on {socket.gethostname()}, for 3 h 5 min" in caplog.text


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("whose", ["living", "another host's"])
def test_without_flock_anybody_else_is_waited_for(whose: str, tmp_path: Path) -> None:
    host = socket.gethostname() if whose == "living" else "elsewhere"
    pid = os.getppid() if whose == "living" else ended_process()
    owned_by(tmp_path, pid, host, 2 * 86400 + 3600)
    with pytest.raises(StorageError, match=f"process {pid} on {host}, for 2 d 1 h"):
        FolderLock(tmp_path)
    (tmp_path / LOCK_FILE).unlink()  # as the message advises
    FolderLock(tmp_path).release()


@pytest.mark.usefixtures("no_flock")
def test_without_flock_another_containers_process_is_not_judged(tmp_path: Path) -> None:
    record = {"pid": ended_process(), "host": socket.gethostname(), "since": 1, "processes": 1}
    (tmp_path / LOCK_FILE).write_text(json.dumps(record))
    with pytest.raises(StorageError, match="another run is using this folder"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "a stale file"])
def test_without_flock_one_of_several_starts_wins(tmp_path: Path, left: str) -> None:
    stale = [str(ended_process())] if left == "a stale file" else []
    runs = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path), *stale],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert runs.stdout.split() == ["1"] * 20


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("name", [LOCK_FILE, f"{LOCK_FILE}.guard"])
def test_without_flock_no_link_is_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "there")
    with pytest.raises(StorageError, match=f"delete .*{name}|{name} is a link; delete it"):
        FolderLock(folder)
    assert (tmp_path / "there").read_text() == "precious"


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_judging_that_never_ends_is_reported(tmp_path: Path) -> None:
    guard = tmp_path / f"{LOCK_FILE}.guard"
    guard.write_text(f"{ended_process()}\nelsewhere\n")
    with pytest.raises(StorageError, match=f"an unknown process; .* delete {guard}"):
        FolderLock(tmp_path)
    guard.unlink()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"pid": 1e400}', '{"pid": 1, "since": Infinity}',
     '{"pid": 1, "since": NaN}', '{"pid": true, "since": 1}', '{"pid": "$1", "since": 1}',
     '{"pid": 1, "since": 1' + " " * 9999,
     "{" + '"a":{' * 999, '{"pid": ' + "9" * 5000 + ', "since": 1}'],
)  # fmt: skip
def test_nonsense_in_a_lock_file_names_no_owner(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    assert lock._read_owner(tmp_path / LOCK_FILE) is None
    (held,) = lock.lock_folders([tmp_path])
    held.release()


def test_a_host_with_escape_codes_is_shown(tmp_path: Path) -> None:
    owner = {"pid": os.getpid(), "host": "a\x1b[2J\nb", "since": 1.0}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    assert str(StorageError(lock._describe(tmp_path / LOCK_FILE))).isprintable()
