"""The set-up: installs once, survives interruptions and parallel calls, fails loudly."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundle import workshop
from bundle.workshop import (
    CHECKS,
    LOCKS,
    REQUIREMENTS,
    TORCH,
    Environment,
    Need,
    SetupError,
    check_space,
    run_checks,
)

ROOT = Path(workshop.__file__).resolve().parent.parent
PIN = re.compile(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+(; .+)?")  # a marker may follow


class RecordingEnvironment(Environment):
    """Stands for the installer: makes the interpreter's file, counts, may fail halfway."""

    def __init__(self, root: Path, driver: bool = False, fails: bool = False) -> None:
        super().__init__(root, driver)
        self.fails = fails
        self.installs = 0

    def install(self, lock: int) -> None:
        self.installs += 1
        assert [entry.name for entry in self.folder.iterdir()] == [self.stamp.name]
        self.python.parent.mkdir()
        self.python.touch()
        (self.folder / "pyvenv.cfg").touch()
        if self.fails:
            raise SetupError("no network")


class PipEnvironment(Environment):
    """A real virtual environment; pip is asked, but only what ``accepts`` holds is there."""

    def __init__(self, root: Path, driver: bool, accepts: set[str]) -> None:
        super().__init__(root, driver)
        self.accepts = accepts
        self.asked: list[str] = []

    def pip(self, lock, arguments, quiet=False, pinned=True):
        self.asked.append(arguments[0])
        return 0 if arguments[0] in self.accepts | {"--require-hashes"} else 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*REQUIREMENTS, *LOCKS):
        (tmp_path / name).write_text("", encoding="utf-8")
    return tmp_path


def test_second_call_installs_nothing(root):
    first = RecordingEnvironment(root)
    first.prepare()
    second = RecordingEnvironment(root)
    second.prepare()
    assert (first.installs, second.installs) == (1, 0)


@pytest.mark.parametrize("name", [*REQUIREMENTS, *LOCKS])
def test_changed_pins_rebuild(root, name):
    RecordingEnvironment(root).prepare()
    (root / name).write_text("numpy==0\n", encoding="utf-8")
    again = RecordingEnvironment(root)
    again.prepare()
    assert again.installs == 1


def test_new_driver_rebuilds(root):
    RecordingEnvironment(root, driver=False).prepare()
    again = RecordingEnvironment(root, driver=True)
    again.prepare()
    assert again.installs == 1


def test_lost_interpreter_rebuilds(root):
    environment = RecordingEnvironment(root)
    environment.prepare()
    environment.python.unlink()
    environment.prepare()
    assert environment.installs == 2


def test_interrupted_setup_starts_from_nothing(root):
    broken = RecordingEnvironment(root, fails=True)
    with pytest.raises(SetupError, match="no network"):
        broken.prepare()
    again = RecordingEnvironment(root)
    again.prepare()  # its `install` asserts that nothing of the first try is left
    assert again.installs == 1


def test_failed_rebuild_is_not_taken_for_the_earlier_one(root):
    RecordingEnvironment(root).prepare()
    (root / REQUIREMENTS[0]).write_text("numpy==0\n", encoding="utf-8")
    with pytest.raises(SetupError):
        RecordingEnvironment(root, fails=True).prepare()
    (root / REQUIREMENTS[0]).write_text("", encoding="utf-8")
    again = RecordingEnvironment(root)
    again.prepare()
    assert again.installs == 1


def test_foreign_environment_is_left_alone(root):
    foreign = root / ".venv" / "pyvenv.cfg"
    foreign.parent.mkdir()
    foreign.write_text("mine", encoding="utf-8")
    with pytest.raises(SetupError, match="not made by this command"):
        RecordingEnvironment(root).prepare()
    assert [entry.name for entry in foreign.parent.iterdir()] == ["pyvenv.cfg"]


def test_parallel_calls_install_once(root):
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from bundle.workshop import Environment

        class Slow(Environment):
            def install(self, lock):
                with open(self.root / "log", "a") as log:
                    log.write("install\\n")
                time.sleep(1)
                self.python.parent.mkdir()
                self.python.touch()

        Slow(Path(sys.argv[1]), False).prepare()
        """
    )
    command = [sys.executable, "-c", program, str(root)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    messages = b"".join(process.communicate(timeout=60)[1] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert (root / "log").read_text(encoding="utf-8") == "install\n"
    assert b"waiting for it" in messages


def test_killed_setup_keeps_the_lock_until_its_pip_ends(root):
    program = textwrap.dedent(
        """
        import os, subprocess, sys
        from pathlib import Path
        from bundle.workshop import Environment

        class Killed(Environment):
            def install(self, lock):
                slow = "import sys, time; time.sleep(1); open(sys.argv[1], 'w').close()"
                ended = str(self.root / "pip_ended")
                subprocess.Popen([sys.executable, "-c", slow, ended], pass_fds=[lock])
                os._exit(9)

        Killed(Path(sys.argv[1]), False).prepare()
        """
    )
    killed = subprocess.run([sys.executable, "-c", program, str(root)], cwd=ROOT)
    assert killed.returncode == 9
    environment = RecordingEnvironment(root)
    environment.prepare()
    assert (root / "pip_ended").exists()
    assert environment.installs == 1


@pytest.mark.parametrize(
    ("driver", "accepts", "asked"),
    [
        (False, {f"torch=={TORCH}+cpu"}, [f"torch=={TORCH}+cpu"]),
        (False, {f"torch=={TORCH}"}, [f"torch=={TORCH}+cpu", f"torch=={TORCH}"]),
        (True, {f"torch==={TORCH}"}, [f"torch==={TORCH}"]),
        (True, {f"torch=={TORCH}"}, [f"torch==={TORCH}", f"torch=={TORCH}"]),
    ],
)
def test_torch_comes_last_as_the_build_that_is_there(root, monkeypatch, driver, accepts, asked):
    monkeypatch.setattr(workshop.venv.EnvBuilder, "create", lambda self, folder: None)
    environment = PipEnvironment(root, driver, accepts)
    environment.prepare()
    assert environment.asked == ["--require-hashes", *asked]


def test_no_torch_at_all_is_an_error_that_names_it(root, monkeypatch):
    monkeypatch.setattr(workshop.venv.EnvBuilder, "create", lambda self, folder: None)
    with pytest.raises(SetupError, match=f"could not install torch=={TORCH}"):
        PipEnvironment(root, False, set()).prepare()


def test_real_environment_has_pip_and_nothing_foreign(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    environment = PipEnvironment(root, False, {f"torch=={TORCH}+cpu"})
    environment.prepare()
    inside = subprocess.run(
        [environment.python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        env=workshop.clean_environment(),
        capture_output=True,
        check=True,
    )
    assert (
        {"pip"}
        <= {entry["name"] for entry in json.loads(inside.stdout)}
        <= {
            "pip",
            "setuptools",
        }
    )
    assert Environment.pip(environment, 0, ["-r", REQUIREMENTS[0]]) == 0
    # MONAI's own command starts no module of ours before torch: the environment speaks for us.
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        shown = subprocess.run(
            [environment.python, "-c", "import os; print(os.environ['OMP_WAIT_POLICY'])"],
            env={**kept, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == policy
    assert Environment.pip(environment, 0, ["no such requirement"], quiet=True) != 0


class PythonHere(Environment):
    """An environment whose interpreter is the one that runs the tests."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, False)
        self.python = Path(sys.executable)


@pytest.mark.parametrize(
    ("script", "there"),
    [
        (None, False),
        ("echo 'GPU 0: a card'", True),
        ("echo 'driver mismatch'; exit 9", False),
        ("echo 'No devices were found'", False),
    ],
)
def test_driver_is_one_that_lists_a_gpu(tmp_path, monkeypatch, script, there):
    if script is not None:
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workshop.has_nvidia_driver() is there


@pytest.fixture
def unprepared(root, monkeypatch):
    """`main` in a folder without an environment, whose set-up would be recorded."""
    made = []
    monkeypatch.setattr(workshop, "ROOT", root)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(root))
    monkeypatch.setattr(workshop, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(Environment, "install", lambda self, lock: made.append(self.folder))
    monkeypatch.setattr(workshop, "run_checks", lambda *_: 0)
    monkeypatch.setattr(workshop, "run_demo", lambda *_: None)
    monkeypatch.setattr(workshop, "end_on_sigterm", lambda: None)
    return made


SETUP = sum(workshop.SETUP_SIZES[False])


@pytest.mark.parametrize(
    ("job", "size"), [("test", workshop.TEST_SIZE), ("demo", workshop.DEMO_SIZE)]
)
def test_too_small_a_disk_is_said_before_anything_is_installed(
    root, unprepared, disk, capsys, job, size
):
    disk(int((SETUP + size - 0.06) * 1e9))
    assert workshop.main([job]) == 1
    assert not unprepared
    assert not (root / ".venv").exists()
    said = capsys.readouterr().err
    assert said.startswith(f"error: the disk of {root} has {SETUP + size - 0.06:.1f} GB free, but")
    assert f"{SETUP + size:.1f} GB are needed (.venv 2.2 GB, " in said
    assert said.count("\n") == 1
    disk(int((SETUP + size + 0.06) * 1e9))
    workshop.main([job])
    assert unprepared == [root / ".venv"]


def test_an_environment_that_is_there_needs_space_for_the_tests_only(
    root, unprepared, disk, capsys
):
    environment = RecordingEnvironment(root)
    environment.prepare()
    disk(int((workshop.TEST_SIZE + 0.06) * 1e9))
    assert workshop.main(["test"]) == 0
    assert not unprepared
    disk(int((workshop.TEST_SIZE - 0.06) * 1e9))
    assert workshop.main(["test"]) == 1
    assert "GB are needed (files of the tests " in capsys.readouterr().err


def test_what_is_installed_already_counts(root, monkeypatch):
    assert RecordingEnvironment(root).needs()[0].gigabytes == workshop.SETUP_SIZES[False][0]
    (root / ".venv").mkdir()
    (root / ".venv" / "torch").write_bytes(bytes(range(256)) * 4096)
    (root / ".venv" / "gone").symlink_to("nowhere")
    left = RecordingEnvironment(root).needs()[0].gigabytes
    assert left == pytest.approx(workshop.SETUP_SIZES[False][0] - 1.05e-3, abs=1e-4)
    monkeypatch.setitem(workshop.SETUP_SIZES, False, (1e-4, 0.7))
    assert RecordingEnvironment(root).needs()[0].gigabytes == 0


def test_each_disk_is_compared_with_what_goes_to_it(tmp_path, monkeypatch):
    free = {tmp_path / "a": 2e9, tmp_path / "b": 1e9}
    numbers = {}
    for number, folder in enumerate(free):
        folder.mkdir()
        numbers[folder] = SimpleNamespace(st_dev=number)
    monkeypatch.setattr(workshop.Path, "stat", lambda self: numbers[self])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    small, large = Need("small", tmp_path / "a", 1.0), Need("large", tmp_path / "b", 0.9)
    check_space([small, large, small])
    with pytest.raises(SetupError, match=r"b has 1.0 GB free, but 1.1 GB .*large 0.9 GB, more 0.2"):
        check_space([small, large, Need("more", tmp_path / "b", 0.2)])


def test_a_disk_too_full_for_any_file_is_one_line(root, unprepared, monkeypatch, capsys):
    def full():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    assert workshop.main(["test"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no folder for temporary files can be written to; is the disk")
    assert said.count("\n") == 1


@pytest.fixture
def prepared(monkeypatch):
    """`main` without the set-up."""
    monkeypatch.setattr(workshop, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(Environment, "needs", lambda self: [])
    monkeypatch.setattr(Environment, "prepare", lambda self: None)


def test_demo_becomes_the_training_run(prepared, monkeypatch):
    became = []
    monkeypatch.setattr(workshop.os, "execve", lambda *call: became.append(call))
    monkeypatch.setattr(workshop.os, "chdir", lambda folder: became.append(folder))
    monkeypatch.setattr(workshop, "run_checks", lambda *_: 0)  # reached as `execve` returns here
    monkeypatch.setattr(workshop, "end_on_sigterm", lambda: None)
    monkeypatch.setenv("PYTHONPATH", "/foreign")
    workshop.main(["demo", "--learned_atlas#optimizer#epochs", "2"])
    folder, (python, arguments, variables) = became
    assert folder == ROOT
    assert python == str(ROOT / ".venv" / "bin" / "python")
    assert " ".join(arguments[1:]) == (
        "-m monai.bundle run training --config_file ['configs/train.yaml','configs/build.yaml'] "
        "--learned_atlas#optimizer#epochs 2"
    )
    assert "PYTHONPATH" not in variables


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(SetupError("no pip"), 1, "error: no pip\n"), (KeyboardInterrupt(), 130, "")],
)
def test_failed_setup_is_reported_without_traceback(
    prepared, monkeypatch, capsys, error, code, message
):
    def fail(self):
        raise error

    monkeypatch.setattr(Environment, "prepare", fail)
    assert workshop.main(["test"]) == code
    assert capsys.readouterr().err == message


def test_all_checks_run_and_one_failure_fails(root, capfd):
    checks = [
        ("first", ["-c", "import sys; sys.exit(5)"]),  # what pytest says when no test ran
        ("second", ["-c", "import sys; print('args', sys.argv[1:])"]),
    ]
    assert run_checks(PythonHere(root), ["-x"], checks) == 1
    captured = capfd.readouterr()
    assert "args ['-x']" in captured.out
    assert "first: FAILED (exit 5)" in captured.err
    assert "second: passed" in captured.err
    assert run_checks(PythonHere(root), [], checks[1:]) == 0


def test_checks_are_lint_format_types_tests_with_coverage():
    assert [name for name, _ in CHECKS] == [
        "ruff check",
        "ruff format",
        "mypy",
        "import-linter",
        "pytest",
    ]
    assert "--cov" in CHECKS[-1][1]


def test_pytest_without_tests_fails(root):
    assert run_checks(PythonHere(root), [], [("pytest", ["-m", "pytest", str(root)])]) == 1


def test_runs_on_a_bare_interpreter():
    # -I -S: no site-packages, no PYTHONPATH, no working directory on the path
    script = ROOT / "bundle" / "workshop.py"
    bare = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "--help"], capture_output=True, text=True
    )
    assert bare.returncode == 0, bare.stderr
    assert "demo" in bare.stdout
    assert "test" in bare.stdout


def test_no_module_beside_it_hides_the_standard_library():
    # As a script its own folder comes first on the path.
    names = {path.stem for path in (ROOT / "bundle").iterdir()} - {"__main__", "__init__"}
    assert "workshop" in names
    assert not names & sys.stdlib_module_names


def test_every_requirement_is_pinned_and_torch_is_not_among_them():
    for name in REQUIREMENTS:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert pins
        assert all(PIN.fullmatch(pin) for pin in pins)
        assert not any(pin.startswith("torch==") for pin in pins)


def test_locks_hold_the_pins_and_hashes_of_each_and_nothing_else():
    for name, lock in zip(REQUIREMENTS, LOCKS, strict=True):
        pins = [line for line in (ROOT / name).read_text("utf-8").splitlines() if "==" in line]
        said = (ROOT / lock).read_text("utf-8").replace(" \\\n", " ").splitlines()
        locked = [line.split(" --hash=") for line in said if line and not line.startswith("#")]
        wanted = {re.split("[ ;]", pin.lower().replace("_", "-"))[0] for pin in pins}
        assert {entry[0].split(" ")[0].replace("_", "-") for entry in locked} == wanted
        for pin, *hashes in locked:
            assert hashes, pin
            assert all(re.fullmatch("sha256:[0-9a-f]{64} *", one) for one in hashes), pin
            assert (";" in pin) == any(
                ";" in line and line.startswith(pin.split("=")[0]) for line in pins
            ), pin


@pytest.fixture
def borrowed_pip(monkeypatch):
    """Environments take the pip of the tests' one; setting up their own takes seconds."""
    create = workshop.venv.EnvBuilder.create

    def without_pip(self, folder):
        self.with_pip = False
        create(self, folder)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        pip_is_in = sysconfig.get_path("purelib")
        (packages / "borrowed.pth").write_text(pip_is_in + "\n", encoding="utf-8")

    monkeypatch.setattr(workshop.venv.EnvBuilder, "create", without_pip)


def test_a_file_with_another_hash_is_not_installed(tmp_path, monkeypatch, capfd, borrowed_pip):
    """A wheel made here, once as it was hashed and once with a byte more."""
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "found = True\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", about)
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for name in (*REQUIREMENTS, *LOCKS):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / LOCKS[0]).write_text(f"tiny==1.0 --hash=sha256:{sha256}\n", encoding="utf-8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(workshop, "ROOT", tmp_path)
    monkeypatch.setattr(workshop, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(workshop, "run_checks", lambda environment, extra: 0)
    monkeypatch.setattr(workshop, "end_on_sigterm", lambda: None)
    # Torch isn't there to be found, and nothing here needs it.
    monkeypatch.setattr(workshop, "torch_candidates", lambda driver: ("tiny",))
    assert workshop.main(["test"]) == 0
    assert list((tmp_path / ".venv").rglob("tiny.py"))
    with wheel.open("ab") as file:
        file.write(b"!")
    (tmp_path / REQUIREMENTS[0]).write_text("# changed\n", encoding="utf-8")
    capfd.readouterr()
    assert workshop.main(["test"]) == 1
    output = capfd.readouterr().err
    assert "HASHES" in output
    assert output.splitlines()[-1].startswith("error: pip could not install requirements.lock")
    assert "Traceback" not in output
    assert not list((tmp_path / ".venv").rglob("tiny.py"))


def test_a_missing_list_of_hashes_is_one_line(root):
    (root / LOCKS[1]).unlink()
    with pytest.raises(SetupError, match=r"requirements-dev\.lock can't be read"):
        RecordingEnvironment(root).prepare()


def test_metadata_names_the_same_versions():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if PIN.fullmatch(line))
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["pytorch_version"] == TORCH
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["numpy_version"] == pins["numpy"]
    assert metadata["required_packages_version"].items() <= pins.items()
    assert metadata["version"] in metadata["changelog"]


def test_continuous_integration_runs_the_readme_command():
    command = "python3 bundle/workshop.py test"
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
