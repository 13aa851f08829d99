"""One tiny atlas, trained once by the command that users give, for every integration test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from warm_process import run_module

from bundle.bench.browser import Browser, find_chromium
from scripts.phantom import write_demo_cohort

ROOT = Path(__file__).resolve().parents[2]

Completed = subprocess.CompletedProcess[str]
Shared = Callable[[str, Callable[[Path], object]], Path]

TINY = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#cohort#margin=2",  # so that the box isn't the grid
    "--learned_atlas#dtype=float32",
    "--learned_atlas#model#enc_features=[8,8,8]",
    "--learned_atlas#model#dec_features=[8,8,8,8]",
    "--learned_atlas#optimizer#epochs=2",
    "--learned_atlas#refine#rounds=1",
    "--learned_atlas#refine#iterations=2",
    "--learned_atlas#refine#network_epochs=2",
)


@pytest.fixture(autouse=True)
def _keep_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading settings in this process sets a hook for the command line."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@dataclass(frozen=True)
class Trained:
    """A published atlas and where it came from.

    Args:
        dataset_dir: the demo cohort, 5 subjects of 32x36x32 voxels.
        output_dir: holds the atlas.
        ckpt_dir: holds ``model.pt`` and ``run_state``.
        overrides: of the training, besides these folders.
    """

    dataset_dir: Path
    output_dir: Path
    ckpt_dir: Path
    overrides: tuple[str, ...] = TINY

    @property
    def atlas(self) -> Path:
        """The published folder."""
        return self.output_dir / "learned_atlas"

    @property
    def held_out(self) -> Path:
        """A dataset folder with one subject that was not in the training."""
        return self.dataset_dir / ".truth" / "held_out"

    def folders(self) -> tuple[str, ...]:
        """The three folders as overrides."""
        return (
            f"--dataset_dir={self.dataset_dir}",
            f"--output_dir={self.output_dir}",
            f"--ckpt_dir={self.ckpt_dir}",
        )


def monai_bundle_run(run_id: str, config: str, *words: object, cwd: Path = ROOT) -> Completed:
    """``python -m monai.bundle run`` as a user types it, from the root or from elsewhere."""
    name = f"configs/{config}.yaml"
    where = ["--config_file", name]
    if cwd != ROOT:
        where = ["--config_file", str(ROOT / name), "--bundle_root", str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # the root must be found by bundle_root alone
    return run_module("monai.bundle", ["run", run_id, *where, *map(str, words)], cwd, environment)


NEEDS_CHROMIUM = "TRACT_ATLAS_REQUIRES_CHROMIUM"  # set by continuous integration


@pytest.fixture(scope="session")
def open_page() -> type[Browser]:
    """`Browser`, for a page in headless Chromium; without Chromium the test is skipped."""
    if find_chromium() is None:
        if os.environ.get(NEEDS_CHROMIUM):
            pytest.fail(f"{NEEDS_CHROMIUM} is set and there is no Chromium on the path")
        pytest.skip("no Chromium on the path: the page isn't opened (apt install chromium)")
    return Browser


def bundle_verb(verb: str, *words: object) -> Completed:
    """``python -m bundle <verb>`` as a user types it, from the root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_module("bundle", [verb, *map(str, words)], ROOT, environment)


@pytest.fixture(scope="session")
def run_verb() -> Callable[..., Completed]:
    """`bundle_verb`."""
    return bundle_verb


@pytest.fixture(scope="session")
def run_bundle() -> Callable[..., Completed]:
    """`monai_bundle_run`."""
    return monai_bundle_run


def was_refused(result: Completed, code: int, *messages: str) -> None:
    """Assert that a command ended with one error message that a person can act on."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert "ERROR" not in result.stdout  # nothing was logged on top of the message
    assert sum(line.startswith("error: ") for line in result.stderr.splitlines()) == 1
    output = result.stderr[result.stderr.index("error: ") :]
    for message in messages:
        assert message in output


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """`was_refused`."""
    return was_refused


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Makes a folder once for all processes of this test run; it is read only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of this run, common to its processes

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, failed = base / f"shared-{name}", base / f"shared-{name}.failed"
        with FileLock(base / f"shared-{name}.lock"):
            assert not failed.exists(), f"{name}: its making failed in another process"
            if not folder.exists():
                failed.touch()
                fill(folder)
                failed.unlink()
        return folder

    return make


@pytest.fixture(scope="session")
def demo_cohort(shared: Shared) -> Path:
    """5 subjects to train on, one held out; read only, like everything of a session."""
    return shared(
        "demo",
        lambda folder: write_demo_cohort(folder, subjects=5, held_out=1, shape=(32, 36, 32)),
    )


@pytest.fixture(scope="session")
def trained(demo_cohort: Path, shared: Shared) -> Trained:
    """The atlas of `demo_cohort`; read only."""

    def train(base: Path) -> None:
        made = Trained(demo_cohort, base / "output", base / "models")
        result = monai_bundle_run("training", "train", *made.folders(), *made.overrides)
        assert result.returncode == 0, result.stderr

    base = shared("trained", train)
    return Trained(demo_cohort, base / "output", base / "models")


@pytest.fixture(scope="session")
def averaged(demo_cohort: Path, shared: Shared) -> Path:
    """The averaging atlas of `demo_cohort`; read only."""

    def average(base: Path) -> None:
        folders = f"--dataset_dir={demo_cohort}", f"--output_dir={base}"
        result = monai_bundle_run("averaging", "average", *folders)
        assert result.returncode == 0, result.stderr
        assert [path.name for path in base.iterdir()] == ["atlas"]

    return shared("averaged", average) / "atlas"
