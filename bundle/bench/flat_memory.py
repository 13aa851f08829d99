"""Checks that memory doesn't grow with the number of subjects, or during a long run.

    python -m bundle.bench.flat_memory --subjects 10 100 1000 --steps 2000

Averaging, registering and the emission of an atlas (``export``) run on cohorts of generated
subjects of 16x16x16 voxels, one process each, and their peak memory is reported. Then the memory
and the open files of a training with that many steps are measured, in its second and its third
quarter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bundle.bench.faults import SHAPE, SUBJECTS, WORKS, write_cohort
from bundle.bench.forked_jobs import in_process

JOBS = ("average", "register", "export")
_EVERY = 1.0  # seconds


def peaks(
    folder: Path, counts: Sequence[int], shape: Sequence[int] = SHAPE
) -> dict[str, dict[int, float]]:
    """Peak memory in MB of each job by the number of subjects."""
    model = folder / "model"
    _sound(WORKS["train"].command(model, write_cohort(folder / "data", shape=shape)), model)
    result: dict[str, dict[int, float]] = {name: {} for name in JOBS}
    for count in counts:
        data = write_cohort(folder / f"data-{count}", count, shape)
        for name in JOBS:
            base = folder / f"{name}-{count}"
            (base / "models").mkdir(parents=True)
            shutil.copy(model / "models" / "model.pt", base / "models")
            result[name][count] = round(_sound(WORKS[name].command(base, data), base).peak_mb, 1)
            print(f"{name}, {count} subjects: {result[name][count]} MB at most", flush=True)
            shutil.rmtree(base)
        shutil.rmtree(data)
    return result


def _sound(words: list[str], folder: Path, **more: Any) -> Any:
    folder.mkdir(exist_ok=True)
    ended = in_process(words, folder, **more)
    if ended.status != 0:
        raise SystemExit(f"{words[0]} ended with {ended.status}:\n{ended.output}")
    return ended


def long_run(folder: Path, steps: int) -> dict[str, Any]:
    """Memory and open files of a training: medians of the second and the third quarter."""
    samples: list[tuple[float, int]] = []

    def watch(process: int) -> None:
        with suppress(OSError):  # it has ended
            while True:
                status = Path(f"/proc/{process}/status").read_text()
                if "VmRSS:" not in status:
                    return
                resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
                samples.append((resident, len(list(Path(f"/proc/{process}/fd").iterdir()))))
                time.sleep(_EVERY)

    words = WORKS["train"].command(folder / "long", write_cohort(folder / "long-data"))
    words = [word for word in words if "batch_size" not in word and "epochs" not in word]
    epochs = -(-steps // SUBJECTS)
    words += [f"--learned_atlas#optimizer#epochs={epochs}"]
    words += ["--learned_atlas#refine#network_epochs=1"]
    words += ["--learned_atlas#optimizer#batch_size=1"]
    ended = _sound(words, folder / "long", watch=watch)
    # Start and end have other phases: imports, refinement, publication.
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-2 * quarter : -quarter]
    return {
        "steps": epochs * SUBJECTS,
        "seconds": round(ended.seconds),
        "samples": len(samples),
        "memory_mb": [round(median(one[0] for one in part), 1) for part in (early, late)],
        "open_files": [median(one[1] for one in part) for part in (early, late)],
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subjects", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="flat-memory-"))
    report: dict[str, Any] = {}
    if options.steps:
        report["long_run"] = long_run(folder, options.steps)
        print(json.dumps(report["long_run"]), flush=True)
    if options.subjects:
        report["peak_mb"] = peaks(folder, options.subjects)
    print(json.dumps(report))
    shutil.rmtree(folder)


if __name__ == "__main__":
    import monai.bundle  # noqa: F401  # once, for all processes

    main()
