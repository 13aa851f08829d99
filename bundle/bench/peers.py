"""Builds atlases of one cohort with this bundle and its peers, and measures all in the same way.

    python -m bundle.bench.peers --work output/peers                       # the demo cohort
    python -m bundle.bench.peers --work output/peers --dataset_dir <folder> \\
        --pattern '{subject}/tdi.nii.gz' --normalisation none --log_offset 1 --presence 0.5

Each build runs in a separate process, one after another, with the same number of threads. CPU time,
wall time and peak memory are the kernel's numbers. The peers get the log densities that we train
on, over the whole grid. antspyx and voxelmorph are installed on first use into a separate
environment below the work folder. Writes `peers.json` and `peers.md` there.

For any cohort the table contains the measures of bundle/bench/atlas_quality.py; for the demo
cohort, whose truth is known, also the bridge Dice, scatter, shift and the correlation with the
truth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bundle.bench.atlas_quality import (
    Build,
    cohort_densities,
    read_build,
    score,
    true_warps,
    warped,
)
from scripts.cohort import Cohort, read_cohort
from scripts.phantom import ensure_demo_cohort
from scripts.phantom.scores import score_atlas
from scripts.phantom.truth import load_truth
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("antspyx==0.6.3", "voxelmorph==0.3.4", "torch==2.13.0")
TRAINING = ("-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml")
COLUMNS = {
    "bridge Dice": ("truth", "bridge_dice"),
    "pair Dice": ("truth", "pair_dice"),
    "size": ("truth", "vol"),
    "r to truth": ("truth", "r_to_truth"),
    "TRE": ("truth", "tre"),
    "shift": ("truth", "shift"),
    "pair correlation": ("score", "pairwise_correlation_after"),
    "subject support": ("score", "own_support_correlation"),
    "EFC": ("score", "efc"),
    "gradient ratio": ("score", "gradient_ratio"),
    "core share": ("score", "core_share"),
    "inflation": ("score", "inflation"),
    "centrality": ("score", "mean_displacement_voxels"),
    "fold %": ("score", "folded_percent"),
    "min det J": ("score", "smallest_jacobian"),
    "inverse": ("score", "inverse_consistency_voxels"),
    "negative": ("score", "negative_voxels"),
    "background > 0": ("score", "background_above_zero"),
    "CPU s": ("cost", "cpu_seconds"),
    "wall s": ("cost", "wall_seconds"),
    "peak GiB": ("cost", "peak_gib"),
}
"""Columns of the table, and their keys in a result."""


@dataclass(frozen=True)
class Task:
    """One cohort to build atlases of.

    Args:
        work: folder for everything that is written.
        dataset: the cohort's folder.
        overrides: of `configs/train.yaml`, for this cohort.
        cohort: as read by our code.
        names: its subjects.
        native: their densities on the full grid.
        offset: of the log densities.
        presence: density above which a tract is present.
        threads: for every build.
        voxelmorph_steps: training steps of that peer.
    """

    work: Path
    dataset: Path
    overrides: tuple[str, ...]
    cohort: Cohort
    names: list[str]
    native: list[np.ndarray]
    offset: float
    presence: float
    threads: int
    voxelmorph_steps: int


# A process inherits its parent's peak memory at its start; this launcher needs hardly any.
_LAUNCHER = """
import json, resource, subprocess, sys
ended = subprocess.run(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
sys.exit(ended.returncode)
"""


def run_measured(command: Sequence[str], log: Path, threads: int) -> dict[str, float]:
    """Run a process to its end; return its CPU seconds, wall seconds and peak memory.

    Raises:
        RuntimeError: it failed; the message names the log.
    """
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    usage = log.with_suffix(".usage")
    start = time.perf_counter()
    with log.open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-c", _LAUNCHER, str(usage), *command],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed ({ended.returncode}), see {log}")
    cpu_seconds, peak = json.loads(usage.read_text())
    return {
        "cpu_seconds": cpu_seconds,
        "wall_seconds": time.perf_counter() - start,
        "peak_gib": peak / 2**20,
    }


# -- the builds ------------------------------------------------------------------------------


def plain_average(task: Task, name: str) -> tuple[Build, dict[str, float]]:
    """No registration."""
    shape = (3, *task.native[0].shape)
    still = [np.zeros(shape, np.float32) for _ in task.names]
    return Build(
        np.mean(task.native, axis=0), task.native, still, still, task.offset, task.presence
    ), {}


def true_fields(task: Task, name: str) -> tuple[Build, dict[str, float]]:
    """The true deformations of the demo cohort: the ceiling."""
    truth = load_truth(task.dataset)
    there = [subject.to_template for subject in truth.training]
    back = [subject.to_subject for subject in truth.training]
    moved = [warped(m[None], u)[0] for m, u in zip(task.native, there, strict=True)]
    return Build(np.mean(moved, axis=0), task.native, there, back, task.offset, task.presence), {}


def ours(*overrides: str) -> Callable[[Task, str], tuple[Build, dict[str, float]]]:
    """Our training with some additional overrides."""

    def build(task: Task, name: str) -> tuple[Build, dict[str, float]]:
        folder = task.work / name
        cost = run_measured(
            [
                sys.executable, *TRAINING, "--dataset_dir", str(task.dataset),
                "--output_dir", str(folder / "output"), "--ckpt_dir", str(folder / "models"),
                "--learned_atlas#resume", "false", *task.overrides, *overrides,
            ],
            folder / "log.txt",
            task.threads,
        )  # fmt: skip
        return read_build(folder / "output" / "learned_atlas"), cost

    return build


def peer(script: str, argument: Callable[[Task], int]) -> Callable[..., Any]:
    """A peer's script in the peers' environment."""

    def build(task: Task, name: str) -> tuple[Build, dict[str, float]]:
        python = peers_environment(task.work / "environment")
        folder = exchange_folder(task, name)
        cost = run_measured(
            [str(python), f"bundle/bench/{script}", str(folder), str(argument(task))],
            folder / "log.txt",
            task.threads,
        )
        fields = {
            kind: [np.load(folder / kind / f"{subject}.npy") for subject in task.names]
            for kind in ("to_template", "to_subject")
        }
        log_template = np.load(folder / "template_log.npy").astype(np.float64)
        # Rounding errors that a peer leaves in the background (antspyx in one build, not in
        # another) aren't density: they would dominate the template's mean gradient over all values
        # above 0.
        log_template[np.abs(log_template) < 1e-6 * log_template.max()] = 0
        template = task.offset * np.expm1(log_template)
        return Build(template, task.native, **fields, offset=task.offset, presence=task.presence), (
            cost
        )

    return build


TRAINED = ("--learned_atlas#model#initial", "null")
"""A network of the cohort, in place of the one that ships."""

BUILDS: dict[str, Callable[[Task, str], tuple[Build, dict[str, float]]]] = {
    "plain average": plain_average,
    "true warps": true_fields,
    "antspyx build_template, 4 iterations": peer("peer_ants.py", lambda task: 4),
    "voxelmorph 0.3.4 with a template": peer(
        "peer_voxelmorph.py", lambda task: task.voxelmorph_steps
    ),
    # The network's last epochs are for new subjects and don't change an atlas: only one build has
    # them.
    "ours, network only": ours(
        *TRAINED,
        "--learned_atlas#refine#rounds", "0", "--learned_atlas#refine#network_epochs", "0",
    ),
    # One epoch at a rate that changes nothing: fields start from the identity, the template from
    # the mean.
    "ours, refinement only": ours(
        *TRAINED,
        "--learned_atlas#optimizer#epochs", "1", "--learned_atlas#optimizer#lr", "1e-9",
        "--learned_atlas#refine#rounds", "8", "--learned_atlas#refine#iterations", "20",
        "--learned_atlas#refine#network_epochs", "0",
    ),
    "ours, half of the epochs + refinement": ours(
        *TRAINED,
        "--learned_atlas#optimizer#epochs", "10", "--learned_atlas#refine#network_epochs", "0",
    ),
    "ours, a network trained on the cohort + refinement": ours(*TRAINED),
    "ours as it ships: the network that ships + refinement": ours(),
}  # fmt: skip


def peers_environment(folder: Path) -> Path:
    """The Python of the peers; installs them on first use."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(folder)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, PEERS[-1]], check=True)  # first, to get the build for this machine
        subprocess.run([*pip, *PEERS], check=True)
        done.write_text("\n".join(PEERS))
    return python


def exchange_folder(task: Task, name: str) -> Path:
    """Input of a peer's script: names, affine, log densities as NIfTI."""
    folder = task.work / name.split(" ")[0]
    for part in ("log", "to_template", "to_subject"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "subjects.txt").write_text("\n".join(task.names))
    affine = task.cohort.grid.affine
    np.save(folder / "affine.npy", affine)
    for subject, density in zip(task.names, task.native, strict=True):
        image = nib.Nifti1Image(np.log1p(density / task.offset).astype(np.float32), affine)
        nib.save(image, folder / "log" / f"{subject}.nii.gz")
    return folder


# -- measuring and reporting -----------------------------------------------------------------


def measure_build(task: Task, name: str) -> dict[str, Any]:
    """Build one atlas and return all its figures."""
    build, cost = BUILDS[name](task, name)
    # All builds are measured with the same offset and presence value.
    build = replace(build, offset=task.offset, presence=task.presence, native=task.native)
    result: dict[str, Any] = {"score": score(build), "cost": cost}
    if (task.dataset / ".truth").is_dir():
        truth = load_truth(task.dataset)
        result["truth"] = (
            true_warps(truth)
            if name == "true warps"
            else score_atlas(truth, build.to_template, build.to_subject, build.template.clip(0))
        )
    return result


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """One row per build."""
    columns = {
        title: place
        for title, place in COLUMNS.items()
        if any(place[1] in result.get(place[0], {}) for result in results.values())
    }
    lines = [
        "| build | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for name, result in results.items():
        cells = [shown(result.get(part, {}).get(key)) for part, key in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """A figure as the table prints it."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def open_task(arguments: argparse.Namespace) -> Task:
    """The cohort that the command line names."""
    work = arguments.work.resolve()
    dataset = arguments.dataset_dir or Path(ensure_demo_cohort(ROOT / "data" / "demo"))
    asked: dict[str, Any] = {"normalisation": arguments.normalisation}
    if arguments.pattern:
        asked["pattern"] = arguments.pattern
    if arguments.exclude:
        asked["exclude"] = arguments.exclude
    overrides = [
        "--learned_atlas#loss#log_offset", str(arguments.log_offset),
        "--learned_atlas#presence_value", str(arguments.presence),
    ]  # fmt: skip
    for key, value in asked.items():
        overrides += [f"--learned_atlas#cohort#{key}", str(value)]
    settings = LearnedAtlasConfig.load({"cohort": asked, "device": "cpu"})
    cohort = read_cohort(dataset, settings.cohort_request())
    return Task(
        work, dataset, (*overrides, *arguments.override), cohort,
        [subject.name for subject in cohort.subjects], cohort_densities(cohort),
        arguments.log_offset,
        arguments.presence, arguments.threads, arguments.voxelmorph_steps,
    )  # fmt: skip


def main() -> None:
    """Build, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to write to")
    parser.add_argument("--dataset_dir", type=Path, help="default: the demo cohort")
    parser.add_argument("--pattern", help="of the cohort's maps, see docs/settings.md")
    parser.add_argument("--normalisation", default="waytotal")
    parser.add_argument("--exclude", nargs="+", default=[], help="subjects to leave out")
    parser.add_argument("--log_offset", type=float, default=1e-3)
    parser.add_argument("--presence", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--voxelmorph_steps", type=int, default=480)
    parser.add_argument("--builds", nargs="+", choices=list(BUILDS), default=None)
    parser.add_argument(
        "--override", nargs=argparse.REMAINDER, default=[], help="last: of all our builds"
    )
    arguments = parser.parse_args()
    task = open_task(arguments)
    chosen = arguments.builds or [
        name for name in BUILDS if name != "true warps" or (task.dataset / ".truth").is_dir()
    ]
    results: dict[str, dict[str, Any]] = {}
    for name in chosen:
        results[name] = measure_build(task, name)
        print(name, json.dumps(results[name], indent=1), flush=True)
        (task.work / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
        (task.work / "peers.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
