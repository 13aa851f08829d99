"""Gain and cost of the cohort's refinement after training: the atlas with and without it.

    python -m bundle.bench.refinement_gain <folder> --rounds 0 5

Trains the same atlas once for each number of rounds (the network's training is bit-identical) on
the demo cohort, or on the one that --dataset_dir names, and measures the published results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.bench.atlas_quality import measure

ROOT = Path(__file__).resolve().parents[2]
TOLD = (
    "pairwise_correlation_after", "own_support_correlation", "efc", "gradient_ratio",
    "folded_fields", "smallest_corner_jacobian", "inflation", "mean_displacement_voxels",
)  # fmt: skip
TOLD_OF_TRUTH = ("pair_dice", "bridge_dice", "vol", "r_to_truth", "tre", "shift")


def trained(folder: Path, rounds: int, epochs: int, options: Sequence[str]) -> dict[str, Any]:
    """Train into ``folder`` with that many rounds; return CPU-seconds and figures."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable, "-m", "bundle", "train", "--output_dir", str(folder), "--ckpt_dir",
        str(folder / "models"), "--learned_atlas#refine#rounds", str(rounds),
        "--learned_atlas#optimizer#epochs", str(epochs), *options,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = measure(folder / "learned_atlas")
    row = {name: result[name] for name in TOLD}
    row |= {name: result["truth"][name] for name in TOLD_OF_TRUTH if "truth" in result}
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rounds": rounds, "cpu_seconds": round(spent, 1), **row}


def main() -> None:
    """Print the figures as JSON and as a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the atlases go")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 5])
    arguments, options = parser.parse_known_args()  # the remaining options are for train
    rows = [
        trained(arguments.folder / f"rounds-{n}", n, arguments.epochs, options)
        for n in arguments.rounds
    ]
    about = {"threads": os.environ.get("OMP_NUM_THREADS"), "epochs": arguments.epochs}
    text = json.dumps({**about, "runs": rows}, indent=1)
    (arguments.folder / "refinement_gain.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    names = [name for name in rows[0] if name != "rounds"]
    print("| |", " | ".join(f"{row['rounds']} rounds" for row in rows), "|")
    print("|---|" + "---|" * len(rows))
    for name in names:
        print(f"| {name} |", " | ".join(f"{row[name]:.4g}" for row in rows), "|")


if __name__ == "__main__":
    main()
