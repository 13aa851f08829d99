"""Time and peak memory of one training step, compared with a plain MONAI composition.

    python -m bundle.bench.training_step --shape 145 174 145

Each layout runs in a separate process, so that peaks don't mix: two steps to warm up, then the
median of the timed ones. The layouts make one pass over the pair, like the plain composition; "as
shipped" makes several (``model.passes``). The plain composition is the obvious implementation:
VoxelMorphUNet, DVF2DDF at full resolution, Warp and LocalNormalizedCrossCorrelationLoss, float32,
padded to sizes divisible by 8.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

LAYOUTS = (
    "bfloat16", "bfloat16-as-shipped", "bfloat16-compiled", "float32", "float32-full-field",
    "float32-checkpointing", "monai",
)  # fmt: skip


def sparse_volume(shape: tuple[int, ...]) -> torch.Tensor:
    """A log-density-like volume, a tenth of it not zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 1, *shape, generator=generator)
    return 5 * (values - 0.9).clamp_min(0)


def our_step(layout: str, shape: tuple[int, ...], device: str) -> Callable[[], None]:
    """One step of this bundle's trainer without its handlers."""
    from scripts.atlas.network import AtlasNetwork
    from scripts.losses import AtlasLoss
    from scripts.networks import autocast
    from scripts.settings.atlas import LearnedAtlasConfig

    network = AtlasNetwork(
        sparse_volume(shape).numpy(),
        field_resolution=1 if "full-field" in layout else 2,
        checkpointing="checkpointing" in layout,
        passes=LearnedAtlasConfig.load({}).model.passes_from_nothing
        if "as-shipped" in layout
        else (1,),
    ).to(device)
    network.train()
    if "compiled" in layout:
        network.unet.compile()
    factor = network.field_resolution
    loss = AtlasLoss((1.0, 1.0, 1.0), factor, centrality_weight=0.05)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    image = sparse_volume(shape).roll(3, dims=2).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, layout.split("-")[0]):
            result = network(image)
        terms = loss(
            result["warped"][:, 0], image, result["velocity"][:, 0], network.mean_velocity[0]
        )
        terms["loss"].backward()
        optimizer.step()
        network.project_template()

    return step


def monai_step(shape: tuple[int, ...], device: str) -> Callable[[], None]:
    """The plain composition of MONAI's parts."""
    from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import DVF2DDF, Warp
    from monai.networks.nets import VoxelMorphUNet

    padded = tuple(-(-n // 8) * 8 for n in shape)
    unet = VoxelMorphUNet(
        spatial_dims=3, in_channels=2, unet_out_channels=32,
        channels=(16, 32, 32, 32, 32, 32), final_conv_channels=(16, 16),
    ).to(device)  # fmt: skip
    template = torch.nn.Parameter(sparse_volume(padded).to(device))
    image = sparse_volume(padded).roll(3, dims=2).to(device)
    integrate, warp = DVF2DDF(num_steps=7).to(device), Warp().to(device)
    similarity = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=9)
    smoothness = DiffusionLoss()
    optimizer = torch.optim.Adam([*unet.parameters(), template], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        velocity = unet(torch.cat([template, image], dim=1))
        field = integrate(velocity)
        total = similarity(warp(template, field), image) + 0.5 * smoothness(field)
        total.backward()
        optimizer.step()

    return step


def run_one(layout: str, shape: tuple[int, ...], steps: int, device: str) -> dict[str, float]:
    """Time one layout in this process."""
    step = monai_step(shape, device) if layout == "monai" else our_step(layout, shape, device)
    seconds, cpu = [], []
    for index in range(steps + 2):
        start, used = time.perf_counter(), time.process_time()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        if index >= 2:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu),
        "peak_gib": peak,
    }
    if device != "cpu":
        result["device_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    """Print one line per layout, and everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(145, 174, 145))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--one", choices=LAYOUTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(run_one(arguments.one, shape, arguments.steps, arguments.device)))
        return
    results = {}
    for layout in arguments.layouts:
        finished = subprocess.run(
            [
                sys.executable, "-m", "bundle.bench.training_step", "--one", layout,
                "--shape", *map(str, shape), "--steps", str(arguments.steps),
                "--threads", str(arguments.threads), "--device", arguments.device,
            ],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        results[layout] = json.loads(finished.stdout.strip().split("\n")[-1])
        print(
            layout,
            ", ".join(f"{key} {value:.2f}" for key, value in results[layout].items()),
            flush=True,
        )
    print(json.dumps({"shape": shape, "threads": arguments.threads, "layouts": results}, indent=1))


if __name__ == "__main__":
    main()
