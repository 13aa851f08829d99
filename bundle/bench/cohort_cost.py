"""The cost of one subject in each stage of a run, and an estimate for a large cohort.

    python -m bundle.bench.cohort_cost --shape 145 174 145 --subjects 50000 --processes 64

Each stage runs on a few subjects of a phantom cohort with the code of a training run, on one
thread, in CPU-seconds, so that other work on the machine hardly matters. The cost of ``--subjects``
is a multiple of that: an estimate, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from bundle.bench.training_step import our_step
from scripts.atlas.building import build_network
from scripts.atlas.components import atlas_loss, cohort_transforms
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.velocity_refinement import refine_velocity
from scripts.cohort import read_cohort
from scripts.losses import AtlasLoss
from scripts.phantom import write_demo_cohort
from scripts.publishing.components import cohort_publisher
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.usual_training import with_usual_lengths

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 2  # measured subjects


class SmoothVelocities:
    """Velocities of a few voxels, as rough as learned ones; a field of zeros would compress better.

    Args:
        network: gives their grid.
        subjects: number of subjects.
        loss: of the training.
    """

    def __init__(self, network: AtlasNetwork, subjects: int, loss: AtlasLoss) -> None:
        self.loss = loss
        self.assignment = torch.ones(subjects, 1)
        self.reduced = network.reduced

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """``(1, 3, *reduced)`` of a subject."""
        generator = torch.Generator().manual_seed(index)
        coarse = [max(2, size // 10) for size in self.reduced]
        noise = 2 * torch.randn(1, 3, *coarse, generator=generator)
        return F.interpolate(noise, self.reduced, mode="trilinear", align_corners=True)


class Watch:
    """A progress bar that draws nothing; records when the first subject began and the last
    ended."""

    started = stopped = 0.0

    def __call__(self, total: int, what: str) -> Watch:
        """Begin."""
        self.started = time.process_time()
        return self

    def update(self) -> None:
        """Advance by one."""
        self.stopped = time.process_time()

    def close(self) -> None:
        """Finish."""


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``work``, and the CPU time of this process that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(folder: Path, shape: tuple[int, int, int], dtype: str) -> dict[str, float]:
    """CPU-seconds and bytes per subject in each stage."""
    write_demo_cohort(folder / "demo", subjects=SAMPLE, held_out=0, shape=shape)
    settings = LearnedAtlasConfig.load(
        {"device": "cpu", "dtype": dtype, "min_subjects": 1, "presence_value": 1e-3,
         "verify_jacobian": False}
    )  # fmt: skip
    result: dict[str, float] = {}
    cohort, total = cpu_seconds(lambda: read_cohort(folder / "demo", settings.cohort_request()))
    result["reading and checking"] = total / SAMPLE
    result["voxels of the box"] = math.prod(cohort.crop.shape)

    transforms = cohort_transforms(cohort, settings)
    item, result["loading, cache none"] = cpu_seconds(lambda: transforms(cohort.datalist()[0]))
    torch.save(item["image"], folder / "cached.pt")
    result["loading, cache disk"] = cpu_seconds(lambda: torch.load(folder / "cached.pt"))[1]
    result["bytes of a cached map"] = (folder / "cached.pt").stat().st_size

    step = our_step(dtype, cohort.crop.shape, "cpu")
    step()  # the first one allocates
    result["training step"] = cpu_seconds(step)[1]
    step = our_step(f"{dtype}-as-shipped", cohort.crop.shape, "cpu")
    step()
    result["step of the network's last epochs"] = cpu_seconds(step)[1]

    network = build_network(cohort, settings)
    loss = atlas_loss(cohort.grid.spacing, settings)
    velocities = SmoothVelocities(network, SAMPLE, loss)
    image, start = item["image"][None], velocities.velocity(0)
    total = cpu_seconds(lambda: refine_velocity(network, loss, image, start, 2))[1]
    result["refinement step"] = total / 3  # the last of them has no backward pass
    result["bytes of a velocity"] = 4 * start.numel()

    for what, fields in (("emission without fields", False), ("emission with fields", True)):
        changed = settings.model_copy(update={"save_fields": fields})
        publisher = cohort_publisher(network, cohort, changed, velocities, folder / what)
        watch = publisher.bar = Watch()
        atlas = publisher.publish()
        result[what] = (watch.stopped - watch.started) / SAMPLE
    sizes = [path.stat().st_size for path in (atlas / "fields").iterdir()]
    result["bytes of both fields"] = sum(sizes) / SAMPLE
    result["peak GiB of the process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result


def estimate(result: dict[str, float], subjects: int, processes: int) -> dict[str, float]:
    """Hours on that many processes, each as fast as the measured one, and terabytes.

    Epochs and rounds are those of configs/train.yaml for a network that is trained on the cohort.
    """
    hours = subjects / processes / 3600
    block = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text())["learned_atlas"]
    optimizer, refine = (
        with_usual_lengths(group, block[group], started=False) for group in ("optimizer", "refine")
    )
    return {
        "reading and checking, h (by the first process alone)": (
            subjects / 3600 * result["reading and checking"]
        ),
        "training, h": optimizer["epochs"]
        * hours
        * (result["training step"] + result["loading, cache disk"]),
        "network's last epochs, h": (
            refine["network_epochs"]
            * hours
            * (result["step of the network's last epochs"] + result["loading, cache disk"])
        ),
        "refinement, h": (
            refine["rounds"] * (refine["iterations"] + 1) * hours * result["refinement step"]
        ),
        "emission with fields, h": hours * result["emission with fields"],
        "emission without fields, h": hours * result["emission without fields"],
        "fields, TB": subjects * result["bytes of both fields"] / 1e12,
        "velocities of two rounds, TB": 2 * subjects * result["bytes of a velocity"] / 1e12,
        "cache, TB": subjects * result["bytes of a cached map"] / 1e12,
    }


def main() -> None:
    """Print the measurements and the estimate, and everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(145, 174, 145))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--subjects", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), tuple(arguments.shape), arguments.dtype)
    worked_out = estimate(measured, arguments.subjects, arguments.processes)
    for name, value in {**measured, **worked_out}.items():
        print(f"{name}: {value:,.2f}")
    print(json.dumps({**vars(arguments), "measured": measured, "estimate": worked_out}, indent=1))


if __name__ == "__main__":
    main()
