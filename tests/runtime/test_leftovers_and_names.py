"""What killed runs leave, names as long as systems allow, links; logs and streams that end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.errors import OutOfMemoryError
from scripts.runtime import memory, run_log
from scripts.runtime.error_report import advise_on_memory, find_interruption, find_user_error
from scripts.runtime.memory import available_memory
from scripts.runtime.storage import publish_folder, write_whole
from scripts.runtime.terminal import LastingStream
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]


def _ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_half_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / f".{_ended_process()}.model.pt"
    alive = tmp_path / f".{os.getppid()}.model.pt"
    others = [tmp_path / ".1.other.pt", tmp_path / ".note.model.pt"]
    for path in (dead, alive, *others):
        path.write_bytes(b"half")
    with write_whole(tmp_path / "model.pt") as staged:
        staged.write_bytes(b"whole")
    assert not dead.exists()
    assert all(path.exists() for path in (alive, *others, tmp_path / "model.pt"))


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "[a]*?"])
def test_folders_and_files_of_any_name_that_the_system_allows(tmp_path: Path, name: str) -> None:
    for content in ("one", "two"):
        with publish_folder(tmp_path / name) as staging:
            (staging / "file").write_text(content)
        assert (tmp_path / name / "file").read_text() == content
    file = tmp_path / "files" / name
    for content in ("one", "two"):
        with write_whole(file) as staged:
            staged.write_text(content)
        assert file.read_text() == content
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in file.parent.iterdir()] == [name]


def test_a_link_in_place_of_the_folder_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "scratch" / "atlas"
    link = tmp_path / "output" / "learned_atlas"
    link.parent.mkdir()
    real.mkdir(parents=True)
    link.symlink_to(real)
    for content in ("one", "two"):
        with publish_folder(link) as staging:
            (staging / "file").write_text(content)
    assert link.is_symlink()
    assert (real / "file").read_text() == "two"
    assert [path.name for path in (*real.parent.iterdir(), *link.parent.iterdir())] == [
        "atlas", "learned_atlas",
    ]  # fmt: skip


def test_the_log_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_BYTES", 1000)
    monkeypatch.setattr(run_log, "_kept", None)
    logger = logging.getLogger("scripts.test")
    logger.setLevel(logging.INFO)
    run_log.keep_log(tmp_path)
    assert run_log._kept is not None
    try:
        for number in range(200):
            logger.info("line %d", number)
        run_log.note("the end")
    finally:
        logging.getLogger().removeHandler(run_log._kept)
        run_log._kept.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["run.log", "run.log.1", "run.log.2", "run.log.3"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "run.log").read_text().endswith("ERROR the end\n")


def test_a_stream_that_is_not_read_goes_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        lasting = LastingStream(stream)
        for _ in range(3):
            lasting.write("told to nobody\n")
            lasting.flush()
        assert not lasting.isatty()


def test_other_errors_of_a_stream_are_raised() -> None:
    with Path(os.devnull).open() as unwritable, pytest.raises(OSError):
        LastingStream(unwritable).write("x")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"),
        RuntimeError("can't start new thread"),
    ],
)
def test_memory_that_ran_out_is_a_users_error(error: Exception) -> None:
    wrapped = RuntimeError("a component failed")
    wrapped.__cause__ = error
    advise_on_memory(LearnedAtlasConfig.less_memory)  # the advice is that of the job's block
    result = find_user_error(wrapped)
    assert isinstance(result, OutOfMemoryError)
    assert "checkpointing" in str(result)
    assert find_user_error(RuntimeError("something else")) is None


def test_an_interruption_inside_an_import_is_found() -> None:
    try:
        try:
            raise KeyboardInterrupt
        except BaseException:
            raise RuntimeError("problem in a module") from None
    except RuntimeError as error:
        assert isinstance(find_interruption(error), KeyboardInterrupt)
    assert find_interruption(RuntimeError("none")) is None


@pytest.fixture(params=[1, 2])
def group(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int], None]:
    """Sets limit and usage of a group of processes above this one's, of either version."""
    kind, limit, usage, droppable = {
        1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("", "memory.max", "memory.current", "inactive_file"),
    }[request.param]
    own = tmp_path / "top" / "above" / "own"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text(f"3:cpu:/\n{4 if kind else 0}:{kind}:/above/own\n")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_LIMITS", ((tmp_path / "top", kind, limit, usage, droppable),))

    def set_to(most: int, used: int) -> None:
        (own.parent / limit).write_text(f"{most}\n")
        (own.parent / usage).write_text(f"{used}\n")
        (own.parent / "memory.stat").write_text(f"cache 7\n{droppable} 1000\n")

    return set_to


def test_the_limit_of_a_group_above_counts(group: Callable[[int, int], None]) -> None:
    group(50_000, 21_000)
    assert available_memory() == 30_000
    group(50_000, 99_000)
    assert available_memory() == 0


def test_a_limit_that_is_near_is_reported_once(
    group: Callable[[int, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    group(1_000_000_000, 960_000_000)
    memory._watch()  # ends once it has told
    (record,) = caplog.records
    assert "0.96 of the 1.00 GB of memory" in record.getMessage()
    assert "status 137" in record.getMessage()


def test_a_limit_on_the_address_space_counts() -> None:
    script = (
        "import resource; from scripts.runtime.memory import available_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); print(available_memory())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0 < int(ended.stdout) < 1 << 30


def test_available_memory_is_what_the_machine_has() -> None:
    result = available_memory()
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert result is None or 0 < result <= whole
