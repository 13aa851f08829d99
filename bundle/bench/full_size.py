"""The four jobs on a grid of 145x174x145 voxels: correct results, time and memory.

    python -m bundle.bench.full_size --output <an empty folder>

Makes the demo cohort on that grid (five subjects and one held out), and runs train (one epoch, two
rounds of two refinement steps), export, average and register on it, one process each. Then it
compares the results with what is known without the bundle: the average is NumPy's mean of the five
maps, every map and field is finite and on the cohort's grid, the atlas passes verification (its
statistics follow from inputs and fields), and it is closer to the demo's central anatomy than the
subjects are on average. Ends with status 1 if a check fails. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.metrics import pearson
from scripts.phantom import write_demo_cohort
from scripts.phantom.demo import HELD_OUT, TRUTH

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (145, 174, 145)
SUBJECTS = 5
TRAINING = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#dtype=float32",
    "--learned_atlas#model#initial=null",
    "--learned_atlas#optimizer#epochs=1",
    "--learned_atlas#optimizer#batch_size=1",
    "--learned_atlas#refine#rounds=2",
    "--learned_atlas#refine#iterations=2",
    "--learned_atlas#save_fields=true",
)


def main() -> int:
    """Run, check the results, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="empty folder to keep everything in")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="full-size-"))
    x, y, z = options.shape
    data = folder / "data"
    write_demo_cohort(data, subjects=SUBJECTS, held_out=1, shape=(x, y, z))
    output, models = folder / "output", folder / "models"
    words = [f"--output_dir={output}", f"--ckpt_dir={models}"]
    jobs = {
        "train": [*words, *TRAINING],
        "export": [f"--output_dir={folder / 'exported'}", words[1], *TRAINING[:2]],
        "average": [f"--output_dir={folder / 'averaged'}"],
        "register": [*words, *TRAINING[:2]],
    }
    cost = {}
    for job, arguments in jobs.items():
        cohort = data / TRUTH / HELD_OUT if job == "register" else data
        cost[job] = _run([job, f"--dataset_dir={cohort}", *arguments])
    wrong = _wrong(folder)
    print(json.dumps({"shape": [x, y, z], "cost": cost, "wrong": wrong}, indent=1))
    return int(bool(wrong))


def _run(words: Sequence[str]) -> dict[str, float]:
    """Run a verb and return its cost."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bundle", *words], cwd=ROOT, env=environment, stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def _wrong(folder: Path) -> list[str]:
    """Failed checks."""
    result = []
    paths = [
        path
        for path in sorted((folder / "data").rglob("fdt_paths.nii.gz"))
        if TRUTH not in path.parts
    ]
    maps = [_values(path) for path in paths]
    totals = [float((path.parent / "waytotal").read_text()) for path in paths]
    densities = [values / total for values, total in zip(maps, totals, strict=True)]
    if len(densities) != SUBJECTS:
        return [f"{len(densities)} subjects, not {SUBJECTS}"]
    for name in ("output", "exported", "averaged"):
        for path in sorted((folder / name).rglob("*.nii.gz")):
            values = _values(path)
            if not np.isfinite(values).all():
                result.append(f"{path}: not finite")
            if values.shape[:3] != maps[0].shape:
                result.append(f"{path}: shape {values.shape}")
    (average,) = (folder / "averaged").rglob("atlas_mean.nii.gz")
    apart = float(np.abs(_values(average) - np.mean(densities, axis=0)).max())
    if apart > 1e-6 * float(np.max(densities)):
        result.append(f"the average is {apart:g} away from the mean of the maps")
    central = _values(folder / "data" / TRUTH / "central_1.nii.gz")
    for name in ("output", "exported"):
        atlas = folder / name / "learned_atlas"
        learned = pearson(_values(atlas / "atlas_mean.nii.gz"), central) or 0.0
        people = float(np.mean([pearson(one, central) or 0.0 for one in densities]))
        if learned <= people:
            result.append(f"{atlas}: correlates {learned:.3f} with the truth, people {people:.3f}")
        verified = subprocess.run(
            [sys.executable, "-m", "bundle", "verify", str(atlas)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if verified.returncode != 0:
            result.append(f"{atlas}: {verified.stdout[-500:]}{verified.stderr[-500:]}")
    return result


def _values(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj, dtype=np.float64)


if __name__ == "__main__":
    sys.exit(main())
