"""A few kills of each job, a cut-off network, a closed terminal; bench/faults.py does many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from warm_process import run_code

ROOT = Path(__file__).resolve().parents[2]

CAMPAIGN = """
import sys
import monai.bundle, torch
from pathlib import Path
from bundle.bench.faults import campaign
torch.set_num_threads(1)
tally = campaign(sys.argv[1], 2, Path(sys.argv[2]), seed=1)
assert tally.tries.total() == 2
"""
WITHOUT_NETWORK = """
import sys
import monai.bundle, torch
from pathlib import Path
from bundle.bench.faults import TINY, WORKS, write_cohort
from bundle import cli
folder = Path(sys.argv[1])
def cut(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"the network is asked for: {event} {arguments}")
sys.addaudithook(cut)
data = write_cohort(folder / "data")
for name in ("train", "export", "register", "average"):
    assert cli.main(WORKS[name].command(folder, data)) == 0
"""
MEMORY = """
import json, sys
import monai.bundle, torch
from pathlib import Path
from bundle.bench.flat_memory import peaks
torch.set_num_threads(1)
print(json.dumps(peaks(Path(sys.argv[1]), [60, 460], (24, 24, 24))))
"""
CLOSED = """
import os, signal, sys, torch
from pathlib import Path
from bundle.bench.faults import WORKS, write_cohort
from bundle import cli
folder = Path(sys.argv[1])
words = WORKS["train"].command(folder, write_cohort(folder / "data"))
reader, writer = os.pipe()
os.dup2(writer, 1); os.dup2(writer, 2); os.close(writer)
os.close(reader)  # whoever read our output is gone
from scripts.engines.handlers import LossHistory
told = LossHistory.attach
def hang_up(self, engine):
    os.kill(os.getpid(), signal.SIGHUP)
    return told(self, engine)
LossHistory.attach = hang_up
sys.exit(cli.run(words))
"""


def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return run_code(program, [*map(str, words)], ROOT, environment, timeout=400)


@pytest.mark.parametrize("job", ["train", "average"])
def test_kills_leave_the_earlier_or_the_new_result(job: str, tmp_path: Path) -> None:
    folder = tmp_path / job
    folder.mkdir()
    result = run(CAMPAIGN, job, folder)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_job_needs_a_network(tmp_path: Path) -> None:
    result = run(WITHOUT_NETWORK, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_memory_does_not_grow_with_the_subjects(tmp_path: Path) -> None:
    # A separate process, whose memory holds nothing of other tests.
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for job, by_count in json.loads(result.stdout.splitlines()[-1]).items():
        # One float32 copy of 400 more maps of 24^3 voxels would be 22 MB. Equal runs differ by up
        # to 8 MB, by where the allocator finds room for the packers of written images.
        assert by_count["460"] - by_count["60"] < 14, (job, by_count)


def test_training_survives_a_closed_terminal(tmp_path: Path) -> None:
    result = run(CLOSED, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "output" / "learned_atlas" / "atlas_mean.nii.gz").exists()
    assert "atlas published" in (tmp_path / "models" / "run.log").read_text()
