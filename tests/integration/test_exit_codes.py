"""Every exit code of docs/commands.md, each by the command that meets its cause."""

from __future__ import annotations

import json
import os
from pathlib import Path

from warm_process import run_code

ROOT = Path(__file__).resolve().parents[2]

# One process loads torch and MONAI; each command is a child of it, as in bench/forked_jobs.py.
PROGRAM = """
import json, os, resource, shutil, signal, sys
import monai.bundle, torch
from pathlib import Path
from bundle.bench.faults import WORKS, write_cohort
from bundle.bench.forked_jobs import Moment, in_process
from bundle import cli
torch.set_num_threads(1)
folder = Path(sys.argv[1])
data = write_cohort(folder / "data")
empty = folder / "empty"
empty.mkdir()
base = folder / "base"
base.mkdir()
train = WORKS["train"].command(base, data)
SEEN = {}

def ended(name, words, moment=None):
    found = in_process(words, folder / name, moment)
    SEEN[name] = found.status, found.output[-3000:]

def here(where):
    return [f"--output_dir={folder / where}", f"--ckpt_dir={folder / where}"]

ended("done", train)
ended("setting", [*train, *here("a"), "--learned_atlas#optimizer#lr=-1"])
ended("word", ["train", "--no_such_key=1"])
ended("cohort", [*train, *here("b"), f"--dataset_dir={empty}"])
ended("training", [*train, *here("c"), "--learned_atlas#optimizer#lr=1e38"])
ended("folding", [*train, *here("d"), "--learned_atlas#model#int_steps=0",
      "--learned_atlas#loss#smoothness_weight=1e-6", "--learned_atlas#optimizer#lr=0.3",
      "--learned_atlas#optimizer#epochs=20"])
(folder / "foreign").mkdir()
(folder / "foreign" / "model.pt").write_text("no model")
ended("checkpoint", [*WORKS["export"].command(base, data), f"--ckpt_dir={folder / 'foreign'}"])
ended("storage", [*train, f"--output_dir={data / 'sub-0001.nii.gz'}"])
atlas = base / "output" / "learned_atlas"
ended("verified", ["verify", str(atlas)])
(atlas / "quality.html").unlink()
ended("verification", ["verify", str(atlas)])
big = write_cohort(folder / "big", 5, (96, 96, 96))
limited = [*train, *here("e"), f"--dataset_dir={big}", "--learned_atlas#cohort#margin=60",
           "--learned_atlas#model#enc_features=[64,64]"]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, limits[1]))
ended("memory", limited)
resource.setrlimit(resource.RLIMIT_AS, limits)
long = [*train, *here("f"), "--learned_atlas#optimizer#epochs=1000"]
ended("interrupted", long, Moment(signal.SIGINT, 2.0))
ended("terminated", long, Moment(signal.SIGTERM, 2.0))
print(json.dumps(SEEN))
"""
EXPECTED = {
    "done": 0, "setting": 2, "word": 2, "cohort": 3, "training": 4, "folding": 5, "checkpoint": 6,
    "storage": 7, "verified": 0, "verification": 8, "memory": 9, "interrupted": 130,
    "terminated": 143,
}  # fmt: skip


def test_each_cause_ends_with_its_documented_code(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = run_code(PROGRAM, [str(tmp_path)], ROOT, environment, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert {name: status for name, (status, _) in seen.items()} == EXPECTED, seen
    for name, (_, output) in seen.items():
        assert "Traceback" not in output, (name, output)
        errors = output.count("error: ")
        assert errors == (name not in ("done", "verified", "interrupted", "terminated")), (
            name,
            output,
        )
    table = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for status in EXPECTED.values():
        assert f"\n| {status} | " in table
