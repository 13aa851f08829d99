"""Sets up the repository's environment, then runs the demo or the tests in it.

    python3 bundle/workshop.py demo     # make the atlas of the demo cohort
    python3 bundle/workshop.py test     # lint, types, tests, coverage

A bare Python runs this file as a script before anything is installed, so it uses only the standard
library and imports nothing from the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
WAITING = "import os; os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')"
"""Run at each start of the environment's Python, so that MONAI's own command waits passively, too:
threads that spin while they wait take the time of those that compute (bundle/bench/busy_cores.py).
"""
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
LOCKS = ("requirements.lock", "requirements-dev.lock")
"""The same versions with the SHA-256 of every file of each release; made from REQUIREMENTS."""
SETUP_SIZES = {False: (2.2, 0.9), True: (7.5, 6.0)}
"""Gigabytes of ``.venv`` and of what pip downloads for it, twice, because pip also keeps a copy in
its cache. By whether there is a driver; the sizes with one are an estimate."""
TEST_SIZE, DEMO_SIZE = 1.0, 0.1
"""Gigabytes that a job writes."""
DEMO = (
    *("-m", "monai.bundle", "run", "training"),
    *("--config_file", "['configs/train.yaml','configs/build.yaml']"),
)
CHECKS = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy")),
    (
        "import-linter",
        ("-c", "from importlinter.cli import lint_imports_command as check; check()", "--no-cache"),
    ),
    # One process per core; tests of one file share their set-up, so they stay together. The order
    # of files is that of tests/conftest.py; xdist's own starts the longest last.
    (
        "pytest",
        (
            *("-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"),
            *("--cov", "--cov-report=term"),
        ),
    ),
)


class SetupError(Exception):
    """The environment can't be made; the message says why and what to do."""


class Need(NamedTuple):
    """Space that something takes on a disk.

    Args:
        what: takes it, for the message.
        where: a folder of the disk; it exists.
        gigabytes: that it takes, of 1e9 bytes.
    """

    what: str
    where: Path
    gigabytes: float


def check_space(needs: Sequence[Need]) -> None:
    """Compare what will be written with the free space of each disk.

    Raises:
        SetupError: a disk has too little; the message says how much is free and what needs it.
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(need.where.stat().st_dev, []).append(need)
    for wanted in disks.values():
        free = shutil.disk_usage(wanted[0].where).free / 1e9
        total = sum(need.gigabytes for need in wanted)
        if free < total:
            parts = ", ".join(f"{need.what} {need.gigabytes:.1f} GB" for need in wanted)
            raise SetupError(
                f"the disk of {wanted[0].where} has {free:.1f} GB free, but {total:.1f} GB are "
                f"needed ({parts}); free some space"
            )


def size_of(folder: Path) -> float:
    """Gigabytes that the files below a folder take; 0 if it isn't there."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process may be changing it
                total += 512 * os.lstat(Path(parent) / name).st_blocks
    return total / 1e9


def temporary_folder() -> Path:
    """Where pip and the tests put their files.

    Raises:
        SetupError: there is no folder that can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise SetupError(
            f"no folder for temporary files can be written to; is the disk full? ({error.strerror})"
        ) from error


def has_nvidia_driver() -> bool:
    """Whether the machine has a working NVIDIA driver with at least one GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def torch_candidates(driver: bool) -> tuple[str, ...]:
    """Requirements to try one after another until one of them installs.

    ``==2.13.0`` also accepts a local build such as ``2.13.0+cpu``, and pip prefers it to the plain
    release; ``===`` selects the plain one (CUDA on Linux).
    """
    build = f"torch==={TORCH}" if driver else f"torch=={TORCH}+cpu"
    return (build, f"torch=={TORCH}")


class Environment:
    """The virtual environment in ``<root>/.venv``, made on first use and then reused.

    The file ``.venv/setup.stamp`` is both the lock that parallel calls wait for and the proof that
    the set-up is complete: it contains the fingerprint of what was installed, is emptied before
    anything changes and is written last.

    Args:
        root: folder of the requirement files.
        driver: install the CUDA build of torch.
    """

    def __init__(self, root: Path, driver: bool) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "setup.stamp"
        self.driver = driver

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the content of the environment."""
        digest = hashlib.sha256()
        digest.update(f"{sys.version_info[:2]} {platform.machine()}".encode())
        digest.update(" ".join(torch_candidates(self.driver)).encode())
        digest.update(WAITING.encode())
        for name in (*REQUIREMENTS, *LOCKS):
            try:
                digest.update(b"\0" + (self.root / name).read_bytes())
            except OSError as error:
                raise SetupError(f"{self.root / name} can't be read: {error.strerror}") from error
        return digest.hexdigest()

    def is_ready(self) -> bool:
        """Whether it exists, complete and up to date."""
        try:
            return self.stamp.read_bytes() == self.fingerprint().encode() and self.python.exists()
        except FileNotFoundError:
            return False

    def needs(self) -> list[Need]:
        """Space that the set-up takes: nothing where the environment is ready."""
        if self.is_ready():
            return []
        installed, downloads = SETUP_SIZES[self.driver]
        # What is there is replaced, or it is what another call has installed so far.
        more = max(0.0, installed - size_of(self.folder))
        return [
            Need(".venv", self.root, more),
            Need("downloads of pip", temporary_folder(), downloads),
        ]

    def prepare(self) -> None:
        """Make the environment unless it exists and is complete and up to date.

        Raises:
            SetupError: pip failed, or ``.venv`` was made by something else.
        """
        wanted = self.fingerprint().encode()
        if (self.folder / "pyvenv.cfg").exists() and not self.stamp.exists():
            raise SetupError(
                f"{self.folder} was not made by this command; move it away, it is never overwritten"
            )
        self.folder.mkdir(exist_ok=True)
        with self._locked() as stamp:
            if self.is_ready():
                return
            say("setting up .venv (a few minutes, once)")
            stamp.seek(0)
            stamp.truncate()
            self._clear()
            # pip inherits the lock: if this process is killed, a later call waits for the end of
            # pip
            self.install(stamp.fileno())
            stamp.write(wanted)

    def install(self, lock: int) -> None:
        """Build the environment from scratch: pip, the hashed packages, then torch.

        The dependencies of torch are among the hashed packages and installed first, so only torch
        itself (and, with a driver, its CUDA libraries) is installed without a known hash.
        """
        try:
            # symlinks as `python -m venv` makes them: a copied interpreter may not find its library
            venv.EnvBuilder(symlinks=True, with_pip=True).create(self.folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"the venv module can't make an environment with pip: {error}"
            ) from error
        say(f"installing {' and '.join(LOCKS)}")
        files = [word for name in LOCKS for word in ("-r", name)]
        # Without dependencies: the lists are complete, and one of their packages wants torch.
        if self.pip(lock, ["--require-hashes", "--no-deps", *files], pinned=False) != 0:
            raise SetupError(
                f"pip could not install {' and '.join(LOCKS)}; see its output above (a file with "
                "another hash is never installed)"
            )
        say(f"installing torch {TORCH} ({'CUDA' if self.driver else 'CPU'})")
        *others, last = torch_candidates(self.driver)
        if not any(self.pip(lock, [name], quiet=True) == 0 for name in others) and (
            self.pip(lock, [last]) != 0
        ):
            raise SetupError(f"pip could not install {last}")
        for packages in self.folder.glob("lib/python*/site-packages"):
            (packages / "passive_waiting.pth").write_text(WAITING + "\n", encoding="utf-8")

    def pip(
        self, lock: int, arguments: Sequence[str], quiet: bool = False, pinned: bool = True
    ) -> int:
        """Run ``pip install`` with the pins; with ``quiet`` a failure prints nothing either."""
        pins = [word for name in REQUIREMENTS for word in ("-c", name)] if pinned else []
        command = [str(self.python), "-m", "pip", "install", "-qq", *pins, *arguments]
        return subprocess.run(
            [*command, "--disable-pip-version-check"],
            cwd=self.root,
            env=clean_environment(),
            pass_fds=[lock],
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.DEVNULL if quiet else None,
        ).returncode

    def _clear(self) -> None:
        """Remove the remains of an earlier or interrupted set-up, except the stamp, which is
        locked."""
        for entry in self.folder.iterdir():
            if entry == self.stamp:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        import fcntl  # not on Windows, which `main` refuses before

        with open(self.stamp, "a+b") as stamp:  # noqa: PTH123 (Path.open adds nothing here)
            try:
                fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up is running; waiting for it")
                fcntl.flock(stamp, fcntl.LOCK_EX)
            stamp.seek(0)
            yield stamp


def clean_environment() -> dict[str, str]:
    """The caller's environment without variables that would add foreign packages."""
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    return {**variables, "PIP_USER": "0"}


def job_needs(job: str) -> list[Need]:
    """Space that the job itself takes."""
    if job == "test":
        return [Need("files of the tests", temporary_folder(), TEST_SIZE)]
    return [Need("the atlas of the demo", ROOT, DEMO_SIZE)]


def run_demo(environment: Environment, extra: Sequence[str]) -> None:
    """Replace this process by the training run, with its signals, output and exit code."""
    os.chdir(environment.root)
    python = str(environment.python)
    os.execve(python, [python, *DEMO, *extra], clean_environment())


def run_checks(
    environment: Environment,
    extra: Sequence[str],
    checks: Sequence[tuple[str, Sequence[str]]] = CHECKS,
) -> int:
    """Run all checks, even after a failed one, and report each result.

    Args:
        environment: where to run them.
        extra: more arguments for the last check, pytest.
        checks: name and Python arguments of each.

    Returns:
        0 if all of them passed, else 1 (pytest's "no test ran" is a failure, too).
    """
    outcomes = []
    for name, arguments in checks:
        say(name)
        more = extra if name == checks[-1][0] else ()
        command = [str(environment.python), *arguments, *more]
        # One thread per process: processes that share the cores are slow with more.
        variables = {"OMP_NUM_THREADS": "1", **clean_environment()}
        code = subprocess.run(command, cwd=environment.root, env=variables).returncode
        outcomes.append((name, code))
    for name, code in outcomes:
        say(f"{name}: {'passed' if code == 0 else f'FAILED (exit {code})'}")
    return int(any(code != 0 for _, code in outcomes))


def say(message: str) -> None:
    """Print a message for the user; standard output belongs to the job."""
    print(f"workshop: {message}", file=sys.stderr, flush=True)


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that a running check is ended as well."""

    def stop(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 bundle/workshop.py",
        description="Set up .venv (once, pinned) and run the demo or the tests in it.",
        epilog="Further arguments go to the training run (demo) or to pytest (test); paths in them "
        "are relative to the repository root.",
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=["demo", "test"], help="what to run after the set-up")
    options, extra = parser.parse_known_args(argv)
    try:
        if os.name != "posix":
            raise SetupError("this set-up needs Linux or macOS (on Windows: WSL)")
        if sys.version_info < (3, 11):  # noqa: UP036 (run by whatever python3 is)
            raise SetupError(f"Python 3.11 or newer needed, this is {platform.python_version()}")
        environment = Environment(ROOT, has_nvidia_driver())
        check_space([*environment.needs(), *job_needs(options.job)])
        environment.prepare()
        if options.job == "demo":
            run_demo(environment, extra)
        end_on_sigterm()
        return run_checks(environment, extra)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
