"""Attacks on processes: locks, signals, limits of memory, clocks, other users; see `attacks`.

Each job is a separate process, started by a shell as people and clusters start them. What the
machine doesn't allow here (a mount, another user, a group of processes) is not tried and says so.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from bundle.bench.attacked_jobs import Job, last_line
from bundle.bench.attacks import Outcome, attack
from bundle.bench.faults import TINY, content, write_cohort
from bundle.bench.forked_jobs import Ended
from bundle.places import ROOT

__all__: list[str] = []

_SHAPE = (12, 12, 12)
_ALL_END_S = 30  # after one process of several was killed
_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))

_RACE = """
import errno, fcntl, multiprocessing, sys, time
def fails(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = fails
from scripts.errors import StorageError
from scripts.runtime.lock import lock_folders
def start(folder, ready, tried, winners):
    ready.wait()
    try:
        lock_folders([folder])
        with winners.get_lock():
            winners.value += 1
    except StorageError:
        pass
    tried.wait()
fork = multiprocessing.get_context("fork")
most = 0
for turn in range(int(sys.argv[2])):
    folder = f"{sys.argv[1]}/{turn}"
    ready, tried, winners = fork.Barrier(4), fork.Barrier(4), fork.Value("i", 0)
    runs = [fork.Process(target=start, args=(folder, ready, tried, winners)) for _ in range(4)]
    [run.start() for run in runs]
    [run.join() for run in runs]
    most = max(most, abs(winners.value - 1))
print("one winner in each round" if most == 0 else f"not one winner but {most} more or less")
"""


class _Shell(Job):
    """A cohort of five, and command lines over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_cohort(folder / "d", 5, _SHAPE)

    def line(self, verb: str, *words: str, out: str = "o", models: str = "m") -> str:
        """A command line of the bundle."""
        folders = [f"--dataset_dir={self.data}", f"--output_dir={self.folder / out}"]
        if verb != "average":
            folders.append(f"--ckpt_dir={self.folder / models}")
        settings = TINY if verb == "train" else (*TINY[:1], *TINY[2:4])
        return shlex.join([sys.executable, str(ROOT / "bundle"), verb, *folders, *settings, *words])

    def start(self, line: str, **more: object) -> subprocess.Popen[str]:
        """A line of a shell in the background; its output is in ``job.log``."""
        log = (self.folder / "job.log").open("w")
        return subprocess.Popen(
            ["bash", "-c", line], stdout=log, stderr=log, text=True, cwd=self.folder,
            start_new_session=True, **more,  # type: ignore[call-overload]
        )  # fmt: skip

    def ended(self, process: subprocess.Popen[str], longest: float = 300) -> Ended:
        """The end of a line; one that hangs is killed with all that it started."""
        started = time.monotonic()
        try:
            status = process.wait(longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        described = (self.folder / "job.log").read_text(errors="replace")
        return Ended(status, time.monotonic() - started, None, described, 0)

    def shell(self, line: str, **more: object) -> Ended:
        """A line from start to end."""
        return self.ended(self.start(line, **more))

    def wait(self, reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Wait until a job has come so far, or ended."""
        while process.poll() is None and not reached():
            time.sleep(0.005)

    def fine(self, what: str, ended: Ended) -> Outcome:
        """An outcome that is right if the job ended well."""
        return self.outcome(what, ended, self.done(ended))


# ---------------------------------------------------------------------------------------------
# Locks
# ---------------------------------------------------------------------------------------------


@attack("locks")
def locks(folder: Path) -> Iterator[Outcome]:
    """Starts at the same moment without flock, stale locks, a run that is stopped."""
    jobs = _Shell(folder)
    race = [sys.executable, "-c", _RACE, str(folder / "r"), "30"]
    for what in ("fresh folders", "stale locks"):
        if what == "stale locks":
            dead = subprocess.Popen([sys.executable, "-c", ""])
            dead.wait()
            for turn in range(30):
                described = {"pid": dead.pid, "host": socket.gethostname(), "since": 1}
                (folder / "r" / str(turn)).mkdir(parents=True)
                (folder / "r" / str(turn) / ".tract_atlas.lock").write_text(json.dumps(described))
        ended = subprocess.run(race, cwd=ROOT, capture_output=True, text=True)
        held = ended.stdout.strip() == "one winner in each round"
        yield Outcome(f"four starts at once without flock, 30 rounds, {what}", held,
                      (ended.stdout or ended.stderr).strip()[-160:])  # fmt: skip
        shutil.rmtree(folder / "r", ignore_errors=True)
    first = jobs.start(jobs.line("train"))
    jobs.wait((folder / "m/run_state/run.json").exists, first)
    os.killpg(first.pid, signal.SIGSTOP)
    with _apart(jobs) as other:
        yield other.refused("`train` while another one is stopped (SIGSTOP)",
                            other.shell(jobs.line("train", out="o2")), 7, "process")  # fmt: skip
    os.killpg(first.pid, signal.SIGCONT)
    yield jobs.fine("`train`: goes on after SIGCONT", jobs.ended(first))


class _apart:
    """The same jobs, whose output goes elsewhere."""

    def __init__(self, jobs: _Shell) -> None:
        self.jobs = jobs

    def __enter__(self) -> _Shell:
        other = _Shell.__new__(_Shell)
        other.folder, other.data = self.jobs.folder / "apart", self.jobs.data
        other.folder.mkdir()
        return other

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.jobs.folder / "apart")


# ---------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------


@attack("torchrun")
def torchrun(folder: Path) -> Iterator[Outcome]:
    """One of two processes, or their launcher, is killed; the same command goes on."""
    jobs = _Shell(folder)
    configs = [str(ROOT / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
    line = shlex.join([
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "monai.bundle", "run", "training", "--config_file", str(configs),
        f"--bundle_root={ROOT}", f"--dataset_dir={jobs.data}", f"--output_dir={folder / 'o'}",
        f"--ckpt_dir={folder / 'm'}", *TINY,
    ])  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for victim in ("rank 0", "rank 1", "the launcher"):
        process = jobs.start(f"exec {line}", env=environment)
        jobs.wait((folder / "m/run_state/training.pt").exists, process)
        ranks = _ranks(process.pid)
        target = process.pid if victim == "the launcher" else ranks.get(victim[-1], 0)
        if not target:
            yield Outcome(f"`torchrun`: {victim} is killed", False, "had ended before")
            continue
        os.kill(target, signal.SIGKILL)
        gone = _gone_after([process.pid, *ranks.values()], process)
        left = [name for name in ("m", "o") if (folder / name / ".tract_atlas.lock").exists()]
        again = jobs.shell(line, env=environment)
        held = gone < _ALL_END_S and jobs.done(again)
        yield Outcome(f"`torchrun`: {victim} is killed; the same command again", held,
                      f"all ended after {gone:.0f} s, {len(left)} lock files were left; "
                      f"{last_line(again, folder)}")  # fmt: skip
        for name in ("m", "o"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _ranks(launcher: int) -> dict[str, int]:
    """The processes of a launcher by their rank."""
    result = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "environ").read_bytes().split(b"\0")
            rank = next((one[5:].decode() for one in words if one.startswith(b"RANK=")), None)
            if parent == launcher and rank is not None:
                result[rank] = int(place.name)
    return result


def _gone_after(processes: list[int], child: subprocess.Popen[str]) -> float:
    """Seconds until all processes have ended; those that don't are killed."""
    started = time.monotonic()
    while time.monotonic() - started < 2 * _ALL_END_S:
        child.poll()
        if not any(_runs(one) for one in processes):
            return time.monotonic() - started
        time.sleep(0.1)
    for one in filter(_runs, processes):
        os.kill(one, signal.SIGKILL)
    return time.monotonic() - started


def _runs(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ---------------------------------------------------------------------------------------------
# Memory, clock, temporary folder, users
# ---------------------------------------------------------------------------------------------


@attack("memory")
def memory(folder: Path) -> Iterator[Outcome]:
    """Limits that are too small: one line that says what was needed, or done."""
    jobs = _Shell(folder)
    jobs.require(jobs.shell(jobs.line("train", out="ready", models="ready")))
    for verb in ("average", "train", "export", "register"):
        for limit in (700_000, 1_200_000, 1_800_000):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder / "m")
            if verb in ("export", "register"):
                shutil.copytree(folder / "ready", folder / "m")
            ended = jobs.shell(f"ulimit -v {limit}; {jobs.line(verb)}")
            held = jobs.done(ended) or jobs.one_line(ended, 9)
            yield jobs.outcome(f"`{verb}`: `ulimit -v {limit}`", ended, held)
            shutil.rmtree(folder / "o", ignore_errors=True)
    for limit in (250, 350, 500):
        grouped = _grouped(jobs, jobs.line("train", models="g"), limit << 20)
        if grouped is None:
            yield Outcome("a group's limit of memory", True, "not tried: groups aren't ours here")
            return
        killed = grouped.status in (137, -9) and "memory that this container" in grouped.output
        held = jobs.done(grouped) or jobs.one_line(grouped, 9) or killed
        yield jobs.outcome(f"`train`: a group's limit of {limit} MB", grouped, held)
        shutil.rmtree(folder / "g", ignore_errors=True)


def _grouped(jobs: _Shell, line: str, limit: int) -> Ended | None:
    """A line in a group of processes with a limit of memory; None where that can't be made."""
    for top, name in zip(_GROUPS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        group = top / f"attack-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        try:
            return jobs.shell(f"echo $$ > {group / 'cgroup.procs'}; {line}")
        finally:
            for _ in range(50):
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
    return None


@attack("machine and users")
def machine_and_users(folder: Path) -> Iterator[Outcome]:
    """TMPDIR, the clock, folders of another user, a bundle that can't be written."""
    jobs = _Shell(folder)
    (folder / "file").write_text("")
    for what, place in (("missing", "none"), ("a file", "file")):
        ended = jobs.shell(f"TMPDIR={folder / place} {jobs.line('average')}")
        yield jobs.fine(f"`average`: TMPDIR is {what}", ended)
    jobs.require(jobs.shell(jobs.line("train")))
    expected = content(folder / "o" / "learned_atlas")
    later = time.time() + 400 * 86400
    for path in (*folder.glob("m/**/*"), *folder.glob("o/**/*")):
        os.utime(path, (later, later), follow_symlinks=False)
    ended = jobs.shell(jobs.line("train"))
    same = content(folder / "o" / "learned_atlas") == expected
    yield jobs.outcome(
        "`train`: all files are from 400 days ahead", ended, jobs.done(ended) and same
    )
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        yield Outcome("another user", True, "not tried: not root here")
        return
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    folder.chmod(0o755)
    for path in (folder / "m", folder / "o"):
        subprocess.run(["chmod", "-R", "go-w,a+rX", str(path)], check=True)
    ended = jobs.shell(f"HOME=/ {nobody} {jobs.line('train')}")
    yield jobs.outcome("`train` by another user, whose folders aren't writable", ended,
                    jobs.one_line(ended, 7))  # fmt: skip
    (folder / "x").mkdir()
    (folder / "x").chmod(0o777)
    ended = jobs.shell(f"HOME=/ {nobody} {jobs.line('export', out='x')}")
    yield jobs.outcome("`export` of another user's model, to a folder of one's own", ended,
                    jobs.done(ended))  # fmt: skip
