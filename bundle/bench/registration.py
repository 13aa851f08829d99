"""Time and peak memory of registering one new subject at full size, part by part.

    python -m bundle.bench.registration --shape 145 174 145

The network isn't trained, which doesn't change the operations. The parts are: the network
(velocity), its flow in both directions on the whole grid, the check for folds, warping the atlas
and the subject, and writing the files, which a cohort's run does while the next subject is
computed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bundle.bench.training_step import sparse_volume
from scripts.atlas.network import AtlasNetwork
from scripts.networks import autocast
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import on_full_grid, write_field
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.warp import warp


def peak_gib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def measure(
    shape: tuple[int, ...],
    dtype: str,
    device: str,
    repeats: int,
    passes: Sequence[int],
    inputs: str,
) -> dict[str, Any]:
    """Seconds and CPU seconds of each part, the best of some repeats."""
    image = sparse_volume(shape).roll(3, dims=2).to(device)
    network = AtlasNetwork(sparse_volume(shape).numpy(), passes=passes, inputs=inputs)
    network = network.to(device).eval()
    crop = CropBox((0,) * len(shape), shape)
    measured: dict[str, Any] = {}

    def estimate() -> None:
        with autocast(device, dtype):
            measured["velocity"] = network.velocity(image)

    def flow() -> None:
        forward, inverse = network.displacements(measured["velocity"])
        measured["fields"] = [on_full_grid(u, crop, shape) for u in (forward, inverse)]

    def check() -> None:
        measured["jacobian"] = [jacobian_summary(u[0]) for u in measured["fields"]]

    def resample() -> None:
        measured["maps"] = [
            warp(network.template_density(), measured["fields"][0]),
            warp(image, measured["fields"][1]),
        ]

    def write() -> None:
        grid = Grid(shape, np.eye(4), nib.Nifti1Header())
        with tempfile.TemporaryDirectory() as folder:
            for index, field in enumerate(measured["fields"]):
                write_field(Path(folder) / f"{index}.nii.gz", field[0].cpu().numpy(), grid)

    parts: dict[str, Callable[[], None]] = {
        "network": estimate, "flow": flow, "check": check, "warps": resample, "write": write,
    }  # fmt: skip
    result: dict[str, Any] = {}
    for name, part in parts.items():
        best: tuple[float, float] | None = None
        for _ in range(1 if name == "write" else repeats):
            start, used = time.perf_counter(), time.process_time()
            part()
            if device != "cpu":
                torch.cuda.synchronize()
            now = (time.perf_counter() - start, time.process_time() - used)
            best = now if best is None else min(best, now)
        assert best is not None
        result[name] = {"seconds": best[0], "cpu_seconds": best[1], "peak_gib": peak_gib()}
    compute = [result[name] for name in ("network", "flow", "check", "warps")]
    result["compute"] = {
        key: sum(part[key] for part in compute) for key in ("seconds", "cpu_seconds")
    }
    return result


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(145, 174, 145))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--passes",
        type=int,
        nargs="+",
        default=LearnedAtlasConfig.load({}).model.passes_from_nothing,
    )
    parser.add_argument(
        "--inputs", choices=("images", "forces"), default="images",
        help="what the network sees; forces as well: the network that ships",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = measure(
        tuple(arguments.shape), arguments.dtype, arguments.device, arguments.repeats,
        arguments.passes, arguments.inputs,
    )  # fmt: skip
    print(json.dumps({**vars(arguments), **about}, indent=1))


if __name__ == "__main__":
    main()
