"""Two processes train as one does: equal atlases, one lock, and a killed worker that ends both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from training_runs import published
from warm_process import run_module, started_module

from scripts.phantom import write_demo_cohort
from scripts.publishing.verification import verify_atlas
from scripts.runtime.lock import lock_folders
from scripts.runtime.storage import is_alive
from scripts.settings.atlas import BASELINE_MAPS
from scripts.spatial.fields import field_names

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(ROOT / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
SUBJECTS = [f"sub-{number:02d}" for number in range(1, 8)]

SETTINGS: dict[str, Any] = {
    "learned_atlas#device": "cpu",
    "learned_atlas#dtype": "float32",
    "learned_atlas#model#enc_features": [4, 8],
    "learned_atlas#model#dec_features": [8, 8, 4],
    "learned_atlas#optimizer#epochs": 3,
    "learned_atlas#optimizer#warmup_epochs": 1,
    "learned_atlas#refine#iterations": 3,
    "learned_atlas#refine#network_epochs": 2,
}
# Seven subjects in batches of three: one process has two of them and the other one, and in the
# last batch of an epoch the second has none.
UNEVEN = {"learned_atlas#optimizer#batch_size": 3, "learned_atlas#refine#rounds": 0}
# One subject a process; the refinement magnifies whatever differs by then.
REFINED = {"learned_atlas#optimizer#batch_size": 2, "learned_atlas#refine#rounds": 2}

# Without a training: rounds of the network that ships, then one of instance optimisation.
BUILT = {
    "learned_atlas#model#initial": "shipped",
    "learned_atlas#model#enc_features": [16, 32, 32, 32],
    "learned_atlas#model#dec_features": [32, 32, 32, 16, 16],
    "learned_atlas#optimizer#epochs": 0,
    "learned_atlas#refine#network_rounds": 2,
    "learned_atlas#refine#rounds": 1,
    "learned_atlas#refine#network_epochs": 0,
}


def overrides(dataset: Path, base: Path) -> dict[str, Any]:
    folders = {"output_dir": str(base / "output"), "ckpt_dir": str(base / "models")}
    return {"bundle_root": str(ROOT), "dataset_dir": str(dataset), **folders, **SETTINGS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "demo"
    write_demo_cohort(folder, subjects=7, held_out=0, shape=(16, 18, 16), streamlines=30)
    return folder


def atlas_of_one(dataset: Path, base: Path, settings: dict[str, Any]) -> Path:
    """The atlas of one process, which takes each batch as a whole."""
    return published(dataset, base, {**SETTINGS, **settings})


def torchrun(
    run_id: str, dataset: Path, base: Path, settings: dict[str, Any], *files: Path
) -> subprocess.CompletedProcess[str]:
    """Two processes with the command of the overlay's first lines; the launcher starts each."""
    words = [
        "--standalone", "--nproc_per_node=2",
        "-m", "monai.bundle", "run", run_id, "--config_file", str([*CONFIGS, *map(str, files)]),
        *(f"--{key}={value}" for key, value in {**overrides(dataset, base), **settings}.items()),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return run_module("torch.distributed.run", words, base, environment)


def two_processes(
    run_id: str, dataset: Path, base: Path, settings: dict[str, Any]
) -> tuple[str, str]:
    """Outputs of the two processes that torchrun would start, with what it tells them."""
    words = [
        *("run", run_id, "--config_file", str(CONFIGS)),
        *(f"--{key}={value}" for key, value in {**overrides(dataset, base), **settings}.items()),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        started = []
        for rank in ("0", "1"):
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank,
                "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            environment.pop("PYTHONPATH", None)
            process = started_module("monai.bundle", words, base, environment)
            started.append(stack.enter_context(process))
        ended = [process.wait() for process in started]
    assert [one.returncode for one in ended] == [0, 0], [one.stderr for one in ended]
    return "".join(one.stdout for one in ended), "".join(one.stderr for one in ended)


def volume(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def assert_equal_but_for_rounding(ours: Path, theirs: Path) -> None:
    """Maps, fields, losses: sums over processes are in another order, nothing else differs."""
    for name in BASELINE_MAPS:
        one, other = (volume(folder / f"atlas_{name}.nii.gz") for folder in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * other.max())
    for subject in SUBJECTS:
        for name in field_names(subject):
            one, other = (volume(folder / "fields" / name) for folder in (ours, theirs))
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-3 * np.abs(other).max())
    one, other = (json.loads((folder / "atlas.json").read_text()) for folder in (ours, theirs))
    assert one["training"]["epochs"] == other["training"]["epochs"]
    for term, value in (other["training"]["losses"] or {}).items():
        assert one["training"]["losses"][term] == pytest.approx(value, rel=1e-3, abs=1e-9)
    for key in ("smallest_jacobian", "mean_displacement_rms_voxels", "displacement_rms_voxels"):
        assert one["fields"][key] == pytest.approx(other["fields"][key], rel=1e-3, abs=1e-5)
    assert list(one["files"]) == list(other["files"])
    content = [json.loads((folder / "jacobian.json").read_text()) for folder in (ours, theirs)]
    assert list(content[0]) == list(content[1]) == SUBJECTS


def test_two_processes_make_the_atlas_of_one(dataset, tmp_path):
    alone = atlas_of_one(dataset, tmp_path / "alone", UNEVEN)
    printed, output = two_processes("training", dataset, tmp_path, UNEVEN)
    atlas = tmp_path / "output" / "learned_atlas"
    assert_equal_but_for_rounding(atlas, alone)
    verify_atlas(atlas).require()
    # Only one of them prints, and no temporary file is left.
    assert printed.count("cohort of 7 subjects") == 1
    assert printed.count("atlas published") == 1
    assert output.count("epoch 3/3: 100%") == 1
    assert [path.name for path in (tmp_path / "output").iterdir() if path.name[0] == "."] == []
    state = tmp_path / "models" / "run_state"
    assert json.loads((state / "run.json").read_text())["finished"] is True


def test_two_processes_build_the_atlas_of_one(dataset, tmp_path):
    alone = atlas_of_one(dataset, tmp_path / "alone", BUILT)
    result = torchrun("training", dataset, tmp_path, BUILT)
    assert result.returncode == 0, result.stderr
    atlas = tmp_path / "output" / "learned_atlas"
    assert_equal_but_for_rounding(atlas, alone)
    verify_atlas(atlas).require()


def test_a_killed_worker_ends_the_job_and_another_continues(dataset, tmp_path):
    """The second process kills itself at the start of its third epoch."""
    broken = tmp_path / "broken.yaml"
    end = f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    broken.write_text(
        yaml.safe_dump(
            {
                "+imports": ["$from ignite.engine import Events"],
                "broken": [
                    "$@train#trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: "
                    f"{end} if dist.get_rank() == 1 and engine.state.epoch == 3 else None)",
                    "@training",
                ],
            }
        )
    )
    result = torchrun("broken", dataset, tmp_path, REFINED, broken)
    assert result.returncode != 0
    assert "exitcode  : -9" in result.stderr
    assert not (tmp_path / "output" / "learned_atlas").exists()
    state = tmp_path / "models" / "run_state"
    epoch = torch.load(state / "training.pt", weights_only=True)["epoch"]
    assert epoch in (1, 2)  # the first process may have been ended while it wrote the second

    output, _ = two_processes("training", dataset, tmp_path, REFINED)
    assert output.count(f"training continues after epoch {epoch}") == 1
    alone = atlas_of_one(dataset, tmp_path / "alone", REFINED)
    assert_equal_but_for_rounding(tmp_path / "output" / "learned_atlas", alone)
    stored = sorted((state / "refinement").rglob("0*.pt"))
    assert [path.stem for path in stored] == [f"{index:06d}" for index in range(7)]


def launch(dataset: Path, base: Path) -> subprocess.Popen[bytes]:
    """The command of `torchrun`, left alone."""
    settings = {**overrides(dataset, base), **REFINED, "learned_atlas#optimizer#epochs": 500}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS),
        *(f"--{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.Popen(
        command, cwd=base, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.skipif(sys.platform != "linux", reason="children are listed in /proc")
def test_a_killed_launcher_takes_all_processes_with_it_and_frees_the_folders(
    dataset: Path, tmp_path: Path
) -> None:
    launcher = launch(dataset, tmp_path)
    children: list[int] = []
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "models" / "run_state" / "training.pt").exists():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
        children = [int(number) for number in listed.split()]
        assert len(children) >= 2
        launcher.kill()
        killed = time.monotonic()
        while any(map(is_alive, children)) and time.monotonic() < killed + 60:
            time.sleep(0.2)
        assert not any(map(is_alive, children))
        assert time.monotonic() - killed < 30
    finally:
        for process in (launcher.pid, *filter(is_alive, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        launcher.wait()
    for lock in lock_folders([tmp_path / "output", tmp_path / "models"]):
        lock.release()


@pytest.fixture
def one_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells a process, when it is the only one."""
    for name, value in {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_overlay_has_every_property_that_monai_asks_for(
    dataset: Path, tmp_path: Path, one_of_one: None
) -> None:
    made = ConfigWorkflow(
        config_file=CONFIGS, logging_file=False, workflow_type="train",
        **overrides(dataset, tmp_path), **UNEVEN,
    )  # fmt: skip
    made.initialize()
    try:
        assert torch.distributed.is_initialized()
        assert not made.check_properties()
        trainer = made.parser.get_parsed_content("train#trainer")
        assert isinstance(trainer.network, torch.nn.parallel.DistributedDataParallel)
        assert trainer.network.module is made.parser.get_parsed_content("network")
    finally:
        made.finalize()
    assert not torch.distributed.is_initialized()
