"""Compares held-out subjects with the training subjects: network alone, and refined.

    python -m bundle.bench.held_out output/learned_atlas --ckpt_dir models --work output/held_out

Registers both groups to a published model with the user's command, and measures the written files.
On the demo cohort the held-out subjects are part of it, and the truth is known. Elsewhere they are
the subjects of the dataset folder that the atlas doesn't name (those excluded from training). With
``--labels`` their label maps are compared in template space, nearest voxel, mean Dice over labels
and pairs. Further options are those of the command, such as
``--learned_atlas#model#passes [2,1]``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bundle.bench.atlas_quality import (
    Build,
    cohort_densities,
    dataset_of,
    in_template,
    label_dice,
    read_labels,
    score,
)
from scripts.cohort import Cohort, read_cohort
from scripts.phantom.scores import score_atlas
from scripts.phantom.truth import load_truth
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names, read_field

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (
    "pairwise_correlation_before", "pairwise_correlation_after", "cohort_correlation_before",
    "cohort_correlation_after", "own_support_correlation",
    "folded_fields", "smallest_jacobian", "inflation",
)  # fmt: skip


def register(
    dataset: Path,
    names: Sequence[str],
    ckpt_dir: Path,
    output: Path,
    iterations: int,
    options: Sequence[str] = (),
) -> None:
    """Register subjects to the model like a user.

    Raises:
        RuntimeError: the command failed; the message names its log.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "bundle", "register", "--dataset_dir", str(dataset),
        "--output_dir", str(output), "--ckpt_dir", str(ckpt_dir),
        "--learned_atlas#cohort#subjects", json.dumps(list(names)),
        "--learned_atlas#cohort#exclude", "[]",
        "--learned_atlas#refine#new_subject_iterations", str(iterations), *options,
    ]  # fmt: skip
    with (output / "log.txt").open("wb") as log:
        done = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)
        )
    if done.returncode != 0:
        raise RuntimeError(f"registering failed ({done.returncode}), see {output / 'log.txt'}")


class Bench:
    """One model and its cohort.

    Args:
        atlas: the published folder.
        labels: path pattern of label maps, or None.
    """

    def __init__(self, atlas: Path, labels: str | None) -> None:
        self.about = json.loads((atlas / "atlas.json").read_text())
        subjects = self.about["cohort"]["subjects"]
        self.trained = [one["subject"] for one in subjects]
        self.dataset = dataset_of(self.about)
        self.labels = labels
        self.template = np.asarray(nib.load(atlas / "atlas_mean.nii.gz").dataobj)  # type: ignore[attr-defined]
        self.truth = load_truth(self.dataset) if (self.dataset / ".truth").is_dir() else None

    def groups(self) -> dict[str, tuple[Path, list[str]]]:
        """Dataset folder and names by group."""
        if self.truth is not None:
            held = [one.name for one in self.truth.held_out]
            return {
                "trained on": (self.dataset, self.trained),
                "held out": (self.truth.held_out[0].path.parent, held),
            }
        everyone = self._cohort(self.dataset).subjects
        held = [one.name for one in everyone if one.name not in self.trained]
        return {
            "trained on": (self.dataset, self.trained),
            **({"held out": (self.dataset, held)} if held else {}),
        }

    def _cohort(self, dataset: Path, names: Sequence[str] | None = None) -> Cohort:
        asked = {
            key: value
            for key, value in self.about["settings"]["cohort"].items()
            if key not in ("exclude", "subjects")
        }
        if names is not None:
            asked["subjects"] = list(names)
        settings = LearnedAtlasConfig.load({"cohort": asked, "device": "cpu", "min_subjects": 1})
        return read_cohort(dataset, settings.cohort_request())

    def measure(self, dataset: Path, names: list[str], registered: Path) -> dict[str, Any]:
        """Figures of registered subjects."""
        cohort = self._cohort(dataset, names)
        native, there, back = cohort_densities(cohort), [], []
        for subject in cohort.subjects:
            fields = [
                read_field(registered / subject.name / file).astype(np.float32)
                for file in field_names(subject.name)
            ]
            there.append(fields[0])
            back.append(fields[1])
        offset, presence = self.about["log_offset"], self.about["presence_value"]
        estimate = score(Build(self.template, native, there, back, offset, presence))
        result: dict[str, Any] = {"subjects": len(names), **{key: estimate[key] for key in SHOWN}}
        if self.truth is not None:
            people = [p for p in (*self.truth.training, *self.truth.held_out) if p.name in names]
            result |= score_atlas(self.truth, there, back, subjects=people)
        if self.labels is not None:
            maps = [read_labels(dataset, self.labels, name) for name in sorted(names)]
            result["label_dice_before"] = label_dice(maps)
            result["label_dice"] = label_dice(
                [in_template(one, field) for one, field in zip(maps, there, strict=True)]
            )
        return result


def main() -> None:
    """Register, measure, print a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("atlas", type=Path, help="the published folder")
    parser.add_argument("--ckpt_dir", type=Path, required=True, help="contains its model.pt")
    parser.add_argument("--work", type=Path, required=True, help="folder to write to")
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 60])
    parser.add_argument("--labels", help="such as '{subject}/label.nii.gz'")
    arguments, options = parser.parse_known_args()  # the remaining options are for register
    bench = Bench(arguments.atlas, arguments.labels)
    results: dict[str, Any] = {}
    for group, (dataset, names) in bench.groups().items():
        for iterations in arguments.iterations:
            title = f"{group}, " + (f"{iterations} steps" if iterations else "network alone")
            output = arguments.work.resolve() / title.replace(" ", "_").replace(",", "")
            register(dataset, names, arguments.ckpt_dir.resolve(), output, iterations, options)
            results[title] = bench.measure(dataset, names, output / "registered")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
