"""The wheel: the command and the façade from any folder, and nothing written where it lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("LICENSE", "README.md", "bundle", "configs", "docs", "pyproject.toml", "scripts",
              "setup.py")  # fmt: skip
Completed = subprocess.CompletedProcess[str]

TINY = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#dtype=float32",
    "--learned_atlas#model#enc_features=[4,4]",
    "--learned_atlas#model#dec_features=[4,4,4]",
    "--learned_atlas#optimizer#epochs=1",
    "--learned_atlas#refine#rounds=1",
    "--learned_atlas#refine#iterations=1",
    "--learned_atlas#refine#network_epochs=0",
)


@dataclass(frozen=True)
class Installation:
    """An environment that holds the wheel.

    Args:
        folder: of the environment.
        wheel: what was installed.
    """

    folder: Path
    wheel: Path

    @property
    def package(self) -> Path:
        """The installed folder ``tract_atlas``."""
        (result,) = self.folder.glob("lib/python*/site-packages/tract_atlas")
        return result

    def run(self, *words: object, cwd: Path) -> Completed:
        """Run a program of the environment."""
        program, *rest = map(str, words)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            [str(self.folder / "bin" / program), *rest],
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def python(self, program: str, cwd: Path) -> Completed:
        """Run some lines of Python."""
        return self.run("python", "-c", program, cwd=cwd)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, built from a copy and installed beside the pinned packages; no registry is met."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "clone"
    source.mkdir()
    for name in BUILT_FROM:
        whole = ROOT / name
        if whole.is_dir():
            shutil.copytree(
                whole, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy(whole, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-q", "-w", str(base), str(source)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (wheel,) = base.glob("*.whl")
    folder = base / "environment"
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pinned.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    # pip of the pinned packages, run by the environment's own Python: installs there.
    subprocess.run(
        [str(folder / "bin" / "python"), *pip[1:], "install", *offline, "-q", str(wheel)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return Installation(folder, wheel)


def files_below(folder: Path) -> set[Path]:
    """All files but Python's own caches."""
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_all_that_is_shipped(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    shipped = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("configs/*", "scripts/**/*.py", "docs/**/*.md", "LICENSE")
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    assert {f"tract_atlas/root/{name}" for name in shipped} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tract_atlas"}


def test_help_names_the_command(installed, tmp_path):
    done = installed.run("tract-atlas", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: tract-atlas ")
    wrong = installed.run("tract-atlas", "train", "--nothing", "1", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "see: tract-atlas train --help" in wrong.stderr


def test_facade_is_the_bundles_own_module(installed, tmp_path):
    (tmp_path / "scripts").mkdir()  # the user's own, which isn't meant
    program = (
        "import sys, tract_atlas, scripts.api\n"
        "assert 'torch' not in sys.modules\n"
        "assert tract_atlas.learn_atlas is scripts.api.learn_atlas\n"
        "print(tract_atlas.__file__)"
    )
    done = installed.python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.folder)


def test_other_bundles_scripts_are_warned_of(installed, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    done = installed.python("import scripts, tract_atlas", tmp_path)
    assert done.returncode == 1
    output = done.stderr.splitlines()[-1]
    assert output.startswith("ImportError: tract_atlas needs its package 'scripts'")
    assert str(tmp_path / "scripts") in output


def test_a_cohort_from_elsewhere(installed, tmp_path):
    before = files_below(installed.package)
    demo = installed.run(
        "tract-atlas", "demo", "--folder", "data/demo", "--age_effect", "1", "--subjects", "5",
        "--size", "32", cwd=tmp_path,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr
    done = installed.run("tract-atlas", "train", "--dataset_dir=data/demo", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "learned_atlas" / "atlas_mean.nii.gz").is_file()
    assert (tmp_path / "models" / "model.pt").is_file()
    # The façade and another verb in one process, which loads torch once.
    program = (
        "import sys, tract_atlas, tract_atlas.command\n"
        "print(tract_atlas.average('data/demo', 'averaged'), flush=True)\n"
        "sys.argv = ['tract-atlas', 'verify', 'output/learned_atlas']\n"
        "sys.exit(tract_atlas.command.run())"
    )
    done = installed.python(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "averaged" / "atlas" / "atlas_mean.nii.gz").is_file()
    assert files_below(installed.package) == before


def test_cross_validation_finds_the_installed_configs(installed, tmp_path):
    program = (
        "import tract_atlas, bundle.cli as cli, bundle.overrides as read\n"
        "config = read.read_config([cli.ROOT / 'configs' / 'evaluate.yaml'])\n"
        "print(*cli._places(config).values(), sep='\\n')"
    )
    done = installed.python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.split()]
    assert [path.name for path in paths] == ["train.yaml", "evaluate.yaml"]
    assert all(path.is_file() and path.is_relative_to(installed.package) for path in paths)
