"""Two commands at once on one output folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from warm_process import started_module

from scripts.runtime.lock import LOCK_FILE

ROOT = Path(__file__).resolve().parents[2]


def owner_of(folder: Path) -> str:
    """The owner in a folder's lock, which the owner writes once it has the lock."""
    lock = folder / LOCK_FILE
    return lock.read_text() if lock.exists() else ""


def test_a_second_run_is_refused_and_the_first_continues(
    trained, run_bundle, refused, demo_cohort, tmp_path
):
    output, models = tmp_path / "output", tmp_path / "models"
    words = ["run", "training", "--config_file", "configs/train.yaml"]
    words += [f"--dataset_dir={demo_cohort}", f"--output_dir={output}", f"--ckpt_dir={models}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started_module("monai.bundle", [*words, *trained.overrides], ROOT, environment) as first:
        deadline = time.monotonic() + 120
        while not (owner_of(output) and owner_of(models)) and time.monotonic() < deadline:
            time.sleep(0.01)
        # Stopped, so that it is still at work when the others come, however busy the machine.
        first.send_signal(signal.SIGSTOP)
        here = (f"--dataset_dir={demo_cohort}", "--learned_atlas#device=cpu")
        again = run_bundle(
            "training", "train", *here, f"--output_dir={tmp_path / 'b'}", f"--ckpt_dir={models}"
        )
        published = (f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={output}")
        export = run_bundle("exporting", "export", *here, *published)
        register = run_bundle("registering", "inference", *here, *published)
        first.send_signal(signal.SIGCONT)
        ended = first.wait()
    assert ended.returncode == 0, ended.stderr
    for result, folder in ((again, models), (export, output), (register, output)):
        refused(result, 7, f"{folder}: another run is using", f"process {first.pid} on ")
    assert not (tmp_path / "b").exists()
    assert (output / "learned_atlas" / "atlas.json").exists()
    assert not list(tmp_path.rglob(LOCK_FILE))
