"""Compares a mixture of two templates on two anatomies with a single template on each half.

    python -m bundle.bench.mixture --work output/mixture --shape 32 36 32

Measures how well the mixture separates the subjects, and whether each of its templates is as sharp,
and as close to its true anatomy, as the template of that half alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bundle.bench.peers import TRAINING, run_measured
from scripts.metrics import entropy_focus_criterion, gradient_magnitude, log_density_correlation
from scripts.phantom import write_demo_cohort
from scripts.phantom.truth import load_truth


def train(work: Path, name: str, dataset: Path, threads: int, *overrides: str) -> Path:
    """One training; its published folder."""
    folder = work / name
    run_measured(
        [
            sys.executable, *TRAINING, "--dataset_dir", str(dataset),
            "--output_dir", str(folder / "output"), "--ckpt_dir", str(folder / "models"),
            "--learned_atlas#resume", "false", *overrides,
        ],
        folder / "log.txt",
        threads,
    )  # fmt: skip
    return folder / "output" / "learned_atlas"


def figures(path: Path, central: np.ndarray, offset: float) -> dict[str, float]:
    """Sharpness of one template, and its correlation with the true anatomy."""
    template = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    logarithm = np.log1p(template / offset)
    return {
        "efc": entropy_focus_criterion(template),
        "gradient": gradient_magnitude(logarithm, template > 0),
        "r_to_truth": log_density_correlation(template, central, offset),
    }


def main() -> None:
    """Make the cohort, train three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to write to")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 72, 64))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--override", nargs=argparse.REMAINDER, default=[], help="last: of all three trainings"
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    dataset = work / "cohort"
    if not dataset.exists():
        write_demo_cohort(dataset, shape=tuple(arguments.shape), anatomies=2)
    truth = load_truth(dataset)
    anatomy = {subject.name: subject.anatomy for subject in truth.training}

    mixture = train(
        work, "mixture", dataset, arguments.threads,
        "--learned_atlas#model#n_templates", "2", *arguments.override,
    )  # fmt: skip
    about = json.loads((mixture / "atlas.json").read_text())
    offset = about["log_offset"]
    shares = about["mixture"]
    assigned = {name: int(np.argmax(share)) for name, share in shares.items()}
    result: dict[str, Any] = {"assigned": assigned, "anatomy": anatomy}
    votes = np.zeros((2, 2), int)
    for name, template in assigned.items():
        votes[template, anatomy[name]] += 1
    result["purity"] = float(votes.max(1).sum() / votes.sum())
    for which in (0, 1):
        template = int(votes[:, which].argmax())
        others = [name for name, kind in anatomy.items() if kind != which]
        alone = train(
            work, f"alone-{which}", dataset, arguments.threads,
            "--learned_atlas#cohort#exclude", str(others), *arguments.override,
        )  # fmt: skip
        central = truth.central[which]
        result[f"anatomy {which}"] = {
            "in the mixture": figures(
                mixture / f"template-{template + 1}" / "atlas_mean.nii.gz", central, offset
            ),
            "alone": figures(alone / "atlas_mean.nii.gz", central, offset),
        }
    (work / "mixture.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
