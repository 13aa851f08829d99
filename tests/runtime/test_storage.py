"""Files and folders that appear whole or not at all, cuts and obstacles included."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import StorageError
from scripts.runtime import storage
from scripts.runtime.ownership import MARK, write_mark
from scripts.runtime.storage import check_writable, publish_folder, recover_folder, write_whole


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, but for the marks of published folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARK
    }


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder that was published before."""
    folder = tmp_path / "out" / "atlas"
    (folder / "fields").mkdir(parents=True)
    (folder / "mean.txt").write_text("old mean")
    (folder / "fields" / "a.txt").write_text("old field")
    write_mark(folder)
    return folder


class Cut(BaseException):
    """Neither an Exception nor an OSError, as an interruption is."""


# -- publish_folder --------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(earlier: Path) -> None:
    with publish_folder(earlier) as staging:
        (staging / "std.txt").write_text("new")
        assert content(earlier)["mean.txt"] == b"old mean"  # until the end
    assert content(earlier.parent) == {"atlas/std.txt": b"new"}


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "atlas"
    with publish_folder(target) as staging:
        (staging / "x").write_text("1")
        assert not target.exists()
    assert content(tmp_path) == {"a/b/atlas/x": b"1"}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, Cut, SystemExit])
def test_a_failure_leaves_the_earlier_folder_bit_for_bit(
    error: type[BaseException], earlier: Path
) -> None:
    before = content(earlier.parent)
    expected = StorageError if error is OSError else error
    with pytest.raises(expected), publish_folder(earlier) as staging:
        (staging / "mean.txt").write_text("half a new one")
        raise error("no")
    assert content(earlier.parent) == before
    assert [p.name for p in earlier.parent.iterdir()] == ["atlas"]


def test_a_failure_without_an_earlier_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), publish_folder(tmp_path / "atlas") as staging:
        (staging / "x").write_text("1")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_staging_lies_beside_the_target_and_is_hidden(tmp_path: Path) -> None:
    """A rename over file systems isn't one, and a scan of subjects must not see it."""
    with publish_folder(tmp_path / "atlas") as staging:
        assert staging.parent == tmp_path
        assert staging.name.startswith(".")


def test_a_published_folder_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with publish_folder(tmp_path / "atlas"):
            pass
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)
    assert (tmp_path / "atlas").stat().st_mode & 0o777 == 0o750


def cut_between_renames(earlier: Path) -> Path:
    """What a power cut leaves: the earlier folder set aside, the new one still in staging."""
    staging = earlier.with_name(".atlas.staging-xyz")
    staging.mkdir()
    (staging / "mean.txt").write_text("new mean")
    earlier.replace(earlier.with_name(".atlas.replaced"))
    return staging


def test_a_cut_between_the_renames_is_undone(earlier: Path) -> None:
    before = content(earlier)
    cut_between_renames(earlier)
    recover_folder(earlier)
    assert content(earlier) == before
    recover_folder(earlier)
    assert content(earlier) == before


def test_publishing_again_after_a_cut_leaves_nothing_of_it(earlier: Path) -> None:
    before = content(earlier)
    cut_between_renames(earlier)
    with publish_folder(earlier) as staging:
        assert content(earlier) == before  # recovered first, in case this one fails too
        (staging / "x").write_text("newest")
    assert content(earlier.parent) == {"atlas/x": b"newest"}
    assert [p.name for p in earlier.parent.iterdir()] == ["atlas"]


def test_a_cut_after_the_renames_leaves_the_new_folder(earlier: Path) -> None:
    aside = earlier.with_name(".atlas.replaced")
    aside.mkdir()
    (aside / "mean.txt").write_text("older still")
    before = content(earlier)
    recover_folder(earlier)
    assert content(earlier) == before
    assert not aside.exists()


def test_recovering_nothing_does_nothing(tmp_path: Path) -> None:
    recover_folder(tmp_path / "atlas")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_second_rename_puts_the_earlier_folder_back(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(earlier)
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if ".staging-" in self.name:
            raise OSError("disk gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    with pytest.raises(StorageError, match="atlas: can't be published: disk gone"):  # noqa: SIM117
        with publish_folder(earlier) as staging:
            (staging / "x").write_text("1")
    assert content(earlier.parent) == {f"atlas/{name}": data for name, data in before.items()}


def test_a_running_process_keeps_its_staging_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    target = tmp_path / "atlas"
    code = (
        "import sys, time\n"
        "from scripts.runtime.storage import publish_folder\n"
        f"with publish_folder({str(target)!r}) as staging:\n"
        "    print(staging, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        staging = Path(other.stdout.readline().strip())
        with publish_folder(target):
            assert staging.exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert staging.exists()
    with publish_folder(target):
        assert not staging.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["atlas"]


def test_a_file_where_the_parent_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StorageError, match="out/atlas: can't be written"):  # noqa: SIM117
        with publish_folder(tmp_path / "out" / "atlas"):
            pass
    assert content(tmp_path) == {"out": b"in the way"}


def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "atlas").write_text("in the way")
    with pytest.raises(StorageError, match="atlas: can't be"):  # noqa: SIM117
        with publish_folder(tmp_path / "atlas") as staging:
            (staging / "x").write_text("1")
    assert content(tmp_path) == {"atlas": b"in the way"}


# -- write_whole -----------------------------------------------------------------------------


def test_a_file_appears_with_its_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model.pt"
    with write_whole(target) as staged:
        staged.write_bytes(b"half")
        assert not target.exists()
        assert staged.suffix == ".pt"  # writers choose the format by it
        assert staged.parent == target.parent
        staged.write_bytes(b"whole")
    assert content(tmp_path) == {"deep/model.pt": b"whole"}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, Cut])
def test_a_failed_write_leaves_the_earlier_file(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    expected = StorageError if error is OSError else error
    with pytest.raises(expected), write_whole(target) as staged:
        staged.write_bytes(b"new but cut")
        raise error("no")
    assert content(tmp_path) == {"model.pt": b"old"}


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"model\.pt: can't be written"), write_whole(target):
        pass
    assert content(tmp_path) == {"model.pt": b"old"}


def test_a_link_in_the_temporary_names_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"precious")
    with write_whole(tmp_path / "model.pt") as staged:
        name = staged.name
        staged.write_bytes(b"1")
    (tmp_path / name).symlink_to(tmp_path / "there")
    with write_whole(tmp_path / "model.pt") as staged:
        staged.write_bytes(b"2")
    assert content(tmp_path) == {"there": b"precious", "model.pt": b"2"}
    assert not (tmp_path / "model.pt").is_symlink()


@pytest.mark.parametrize("obstacle", ["parent", "target"])
def test_obstacles_are_storage_errors(obstacle: str, tmp_path: Path) -> None:
    if obstacle == "parent":
        (tmp_path / "out").write_text("in the way")
    else:
        (tmp_path / "out" / "model.pt").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"out/model\.pt: can't be written"):  # noqa: SIM117
        with write_whole(tmp_path / "out" / "model.pt") as staged:
            staged.write_bytes(b"x")
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


# -- check_writable --------------------------------------------------------------------------


def test_looking_whether_a_folder_can_be_written_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/a/b"])
def test_a_file_in_the_way_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file is not a folder"):
        check_writable(tmp_path / path)


def test_a_dangling_link_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="link is not a folder"):
        check_writable(tmp_path / "link" / "a")


def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access check is replaced: for root no folder is closed."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match=f"no permission to write in {tmp_path}"):
        check_writable(tmp_path / "a")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b"])
def test_a_name_that_no_system_takes_is_refused(tmp_path, name):
    with pytest.raises(StorageError, match="can't be written") as caught:
        check_writable(f"{tmp_path}/{name}")
    assert len(str(caught.value)) < 400
    assert "\0" not in str(caught.value)


def _publish_and_die(target: Path, at: int, exchange: bool) -> int:
    """Replace a folder in a process that is killed before its n-th file operation."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        if not exchange:
            storage._exchange = lambda one, other: False
        sys.addaudithook(hook)
        with publish_folder(target) as staging:
            (staging / "a").write_text("new")
            (staging / "b").write_text("new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_before_any_file_operation_leaves_the_old_or_the_new(tmp_path, exchange):
    target = tmp_path / "atlas"
    result = []
    for at in range(1, 200):
        shutil.rmtree(tmp_path)
        target.mkdir(parents=True)
        for name in ("a", "b"):
            (target / name).write_text("old")
        write_mark(target)
        status = _publish_and_die(target, at, exchange)
        if exchange:  # always there, under its name
            assert target.is_dir(), at
        else:
            recover_folder(target)
        kinds = {(target / name).read_text() for name in ("a", "b")}
        assert kinds in ({"old"}, {"new"}), at
        assert {path.name for path in target.iterdir()} == {"a", "b", MARK}, at
        result += kinds
        with publish_folder(target) as staging:
            (staging / "c").write_text("next")
        assert [path.name for path in tmp_path.iterdir()] == ["atlas"], at
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert result.count("old") > 3
    assert result.count("new") > 1


def test_folders_change_names_at_once(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not storage._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("the file system of the tests can't")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["other"]
    with pytest.raises(FileNotFoundError):
        storage._exchange(tmp_path / "one", tmp_path / "nothing")


def test_a_home_folder_that_no_shell_put_in_is_reported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="put the home folder in place of ~"):
        check_writable("~/there")
    (tmp_path / "~").mkdir()
    check_writable("./~/there")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_has_no_hash(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"Is not a file|[Ii]s a directory"):
        storage.file_hash(path)


def test_a_link_in_the_place_of_the_folder_set_aside_is_removed(
    earlier: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    aside = storage._set_aside(earlier)
    aside.symlink_to(precious)
    with publish_folder(earlier) as staging:
        (staging / "new.txt").write_text("new")
    assert not aside.is_symlink() and not earlier.is_symlink()
    assert {path.name for path in earlier.iterdir()} == {"new.txt", MARK}
    shutil.rmtree(earlier)
    aside.symlink_to(precious)
    recover_folder(earlier)
    assert not os.path.lexists(earlier)
    assert (precious / "thesis.txt").read_text() == "mine"


def test_a_staging_folder_that_another_process_sweeps_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep between the making of a folder and its lock, and one that is still at it."""
    make, made = storage.tempfile.mkdtemp, []

    def swept(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            shutil.rmtree(made[0])
        elif len(made) == 2:
            sweeping.append(os.open(made[1], os.O_RDONLY))
            fcntl.flock(sweeping[0], fcntl.LOCK_EX)
        return made[-1]

    sweeping: list[int] = []
    monkeypatch.setattr(storage.tempfile, "mkdtemp", swept)
    with publish_folder(tmp_path / "atlas") as staging:
        assert str(staging) == made[2]
        (staging / "x").write_text("1")
    os.close(sweeping[0])
    assert content(tmp_path / "atlas") == {"x": b"1"}
    with storage.staging_beside(tmp_path / "atlas"):
        assert len(made) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_threads_that_publish_at_once_each_keep_their_staging(tmp_path: Path) -> None:
    def publish(number: int) -> None:
        with publish_folder(tmp_path / "atlas") as staging:
            for name in "abc":
                (staging / name).write_text(str(number))

    with ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(publish, number) for number in range(40)]:
            done.result()
    assert len(set(content(tmp_path / "atlas").values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_a_file_below_a_file_is_reported_by_the_system_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(StorageError, match=r"can't be written: [A-Z][a-z ]+$"),
        write_whole(tmp_path / "file" / "a.txt") as staged,
    ):
        staged.write_text("y")
