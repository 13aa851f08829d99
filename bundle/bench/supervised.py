"""Networks of fields: cost of a training step beside plain float32, and errors on held-out pairs.

    python -m bundle.bench.supervised speed --shape 320 456
    python -m bundle.bench.supervised errors --pairs test.h5 --networks models/fields_*.pt
    python -m bundle.bench.supervised reading --pairs few.h5 many.h5

`speed`: each variant runs in a separate process with one thread, so that peaks don't mix; two
steps to warm up, then the median. A step is forward, warp, losses, backward and Adam on 4 pairs.
`plain` is the same network written plainly: float32, contiguous memory, PyTorch's
pooling, doubling and joining. Its fields are first compared with ours.

`errors`: predictions of saved networks on the pairs of a store, the zero field beside them, and
with `--optimise` the registration by optimisation (`refine`: affine, then joint). CPU-seconds are
of a pair, with one thread.

`reading`: peak memory of a process that reads every pair of a store, by the number of pairs.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bundle.bench.affine import table
from scripts.losses.fields import field_loss
from scripts.losses.images import image_loss
from scripts.networks.described import description_in
from scripts.networks.precision import autocast
from scripts.registration.affine import AffineRefinement
from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import WorldImage
from scripts.settings.make_pairs import MakePairsConfig
from scripts.supervised.field_metrics import pair_metrics
from scripts.supervised.field_network import FieldNetwork, with_dark_background
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.layers import CentredAffine, affine_of_field, warp_image
from scripts.supervised.loading import KnownPairs
from scripts.supervised.local_network import LocalNetwork
from scripts.supervised.making import PairMaker
from scripts.supervised.pair_store import PairStore
from scripts.supervised.saving import load_field_network

VARIANTS = ("plain", "float32", "bfloat16", "bfloat16-inverse")
Step = Callable[[], None]


# ---------------------------------------------------------------------------------------------
# Speed
# ---------------------------------------------------------------------------------------------


class PlainGlobal(nn.Module):
    """The global network of the same weights, written plainly."""

    def __init__(self, ours: GlobalNetwork) -> None:
        super().__init__()
        self.ours = _contiguous(ours)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """The field."""
        x = _standardised(pair)
        for block in self.ours.blocks:
            x = F.max_pool2d(block(x), 2)
        numbers = self.ours.parameters_of(self.ours.dense(x.flatten(1)))
        return CentredAffine.of_parameters(numbers, pair.shape[2:]).displacement(pair.shape[2:])


class PlainLocal(nn.Module):
    """The local network of the same weights, written plainly."""

    def __init__(self, ours: LocalNetwork) -> None:
        super().__init__()
        self.ours = _contiguous(ours)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """The field."""
        ours, shape = self.ours, pair.shape[2:]
        spare = [-n % 2 ** len(ours.down) for n in shape]
        x = ours.start(_standardised(F.pad(pair, [0, spare[1], 0, spare[0]], mode="replicate")))
        skips = []
        for down in ours.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        x = ours.middle(x)
        for up, joined in zip(ours.up, ours.joined, strict=True):
            x = joined(torch.cat([up(F.interpolate(x, scale_factor=2)), skips.pop()], 1))
        padded, last = F.pad(ours.end(x), [0, 1, 0, 1]), ours.field
        field = F.conv2d(padded, last.weight, last.bias)
        return field[..., : shape[0], : shape[1]]


def _contiguous(network: Any) -> Any:
    for one in network.modules():
        if isinstance(one, nn.Conv2d):
            one.weight.data = one.weight.data.contiguous()
    return network


def _standardised(pair: torch.Tensor) -> torch.Tensor:
    dark = with_dark_background(pair)
    return dark / dark.square().mean((2, 3), keepdim=True).sqrt()


def ours(network: str, shape: tuple[int, ...]) -> FieldNetwork:
    """A network of the contract's size, its last layer not 0."""
    torch.manual_seed(0)
    if network == "global":
        made = GlobalNetwork(shape)
        nn.init.normal_(made.parameters_of.weight, std=0.01)
        return made
    return LocalNetwork(len(shape))


def step_of(network: str, variant: str, shape: tuple[int, ...], batch: int) -> Step:
    """A training step of a variant."""
    made = ours(network, shape)
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(batch, 2, *shape, generator=generator)
    field = 3 * torch.randn(batch, 2, *shape, generator=generator)
    losses = image_loss("ncc_9", 2), field_loss("vector_distance", 2, max(shape))
    plain = None
    if variant == "plain":
        wanted = made(pair[:1]).detach()
        kind = PlainGlobal if network == "global" else PlainLocal
        plain = kind(made)  # type: ignore[arg-type]
        result = plain(pair[:1]).detach()
        if not torch.allclose(result, wanted, atol=1e-3, rtol=1e-3):
            raise SystemExit(f"plain and ours differ by {float((result - wanted).abs().max())}")
    dtype = "bfloat16" if variant.startswith("bfloat16") else "float32"
    inverse = variant.endswith("inverse")
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if plain is not None:
            outputs = [plain(pair)]
        else:
            with autocast("cpu", dtype):
                estimate = made.find(pair, inverse=inverse)
            outputs = [one for one in (estimate.field, estimate.inverse) if one is not None]
        total = losses[0](warp_image(pair[:, 1:], outputs[0]), pair[:, :1])
        for one in outputs:
            total = total + losses[1](one, field)
        total.backward()
        optimizer.step()

    return step


def timed(network: str, variant: str, shape: tuple[int, ...], batch: int, steps: int) -> None:
    """Print median CPU-seconds of a step, and the peak of this process, as JSON."""
    torch.set_num_threads(1)
    step, seconds = step_of(network, variant, shape, batch), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for index in range(steps + 2):
        used = time.process_time()
        step()
        if index >= 2:
            seconds.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": statistics.median(seconds), "gib": peak, "before": before}))


def loader_seconds(shape: tuple[int, ...], batch: int, folder: Path) -> float:
    """CPU-seconds of reading a batch, of whichever process reads."""
    torch.set_num_threads(1)
    sections = np.random.default_rng(0).integers(0, 255, (2, *shape), dtype=np.uint8)
    np.save(folder / "sections.npy", sections)
    settings = MakePairsConfig.load(
        {"reference": [str(folder / "sections.npy")], "count": 3 * batch,
         "elastic": {"kind": "none"}}
    )  # fmt: skip
    store = PairStore(PairMaker(settings, folder / "bench_pairs").run())
    data = KnownPairs(store, range(len(store)), inverse=True)
    data[0]
    used = time.process_time()
    for index in range(2 * batch):
        data[index]
    return (time.process_time() - used) / 2


def speed(shape: tuple[int, ...], batch: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each network and variant."""
    folder.mkdir(parents=True, exist_ok=True)
    reading = loader_seconds(shape, batch, folder)
    rows = []
    for network in ("local", "global"):
        result: dict[str, dict[str, float]] = {}
        for variant in VARIANTS:
            if network == "global" and variant.endswith("inverse"):
                continue
            words = [network, variant, *map(str, shape), "--batch", str(batch), "--steps",
                     str(steps)]  # fmt: skip
            printed = subprocess.run(
                [sys.executable, "-m", "bundle.bench.supervised", "one", *words],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            result[variant] = json.loads(printed.splitlines()[-1])
            rows.append(
                {
                    "network": network,
                    "variant": variant,
                    "CPU-s a step": result[variant]["seconds"],
                    "of plain": result[variant]["seconds"] / result["plain"]["seconds"],
                    "peak GiB": result[variant]["gib"],
                    "reading CPU-s": reading,
                    "reading, share of the step": reading / result[variant]["seconds"],
                }
            )
    return rows


def read_all(store: Path) -> None:
    """Read every pair of a store; print their number, the seconds and the peak as JSON."""
    torch.set_num_threads(1)
    data = KnownPairs(PairStore(store), range(len(PairStore(store))), inverse=True)
    data[0]
    before, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.process_time()
    for index in range(len(data)):
        data[index]
    seconds = (time.process_time() - used) / len(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"pairs": len(data), "CPU-s a pair": seconds, "GiB after the first": before,
                      "peak GiB": peak}))  # fmt: skip


def reading(stores: list[Path]) -> list[dict[str, Any]]:
    """A row for each store."""
    rows = []
    for store in stores:
        printed = subprocess.run(
            [sys.executable, "-m", "bundle.bench.supervised", "read", str(store)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        rows.append(json.loads(printed.splitlines()[-1]))
    return rows


# ---------------------------------------------------------------------------------------------
# Errors on held-out pairs
# ---------------------------------------------------------------------------------------------


def by_network(network: FieldNetwork, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The field and its inverse."""
    with torch.no_grad():
        estimate = network.find(item["pair"][None], inverse=True)
    assert estimate.inverse is not None
    return estimate.field[0].numpy(), estimate.inverse[0].numpy()


def by_optimisation(item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The same by `refine` in mode joint, its defaults, voxels as millimetres."""
    images = [WorldImage(one[None], np.eye(4)) for one in item["pair"].split(1)]
    fixed, moving = images
    affine = AffineRefinement()(fixed, moving)
    result = ElasticRefinement(family="affine")(fixed, moving, affine.matrix)
    matrix = result.matrix.double()
    d = len(fixed.shape)
    grid = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in fixed.shape], indexing="ij")
    ).double()

    def mapped(m: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        shift = m[:d, 3].view(d, *[1] * d)
        return torch.einsum("ij,j...->i...", m[:d, :d], points) + shift

    forward = mapped(matrix, grid + result.displacement[0].double()) - grid
    back = mapped(torch.linalg.inv(matrix), grid)
    inverse = warp_image(result.inverse.float(), (back - grid)[None].float())[0].double()
    return forward.float().numpy(), (back + inverse - grid).float().numpy()


def affine_share(item: dict[str, Any]) -> dict[str, float]:
    """What is left of a pair once its nearest affine is taken away."""
    field = item["field"][None]
    best = affine_of_field(field).displacement(field.shape[2:])[0].numpy()
    return pair_metrics(best, -best, item["reference"].numpy(), item["moving"].numpy(),
                        item["field"].numpy())  # fmt: skip


def network_of(path: Path) -> FieldNetwork:
    """A saved network of any kind."""
    weights = torch.load(path, weights_only=True)["network"]
    return load_field_network(path, str(description_in(weights)["network"]))


def errors(store: Path, networks: list[Path], optimise: int) -> list[dict[str, Any]]:
    """A row for no field, each network, the nearest affine, and the optimisation."""
    torch.set_num_threads(1)
    data = KnownPairs(PairStore(store), range(len(PairStore(store))), inverse=True)
    methods: dict[str, Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]]] = {
        "no field": lambda item: (np.zeros_like(item["field"]), np.zeros_like(item["field"]))
    }
    for path in networks:
        methods[f"{path.parent.name}/{path.stem}"] = partial(by_network, network_of(path))
    if optimise:
        methods["optimisation"] = by_optimisation
    rows = []
    for name, method in methods.items():
        numbers, seconds = [], []
        for index in range(min(len(data), optimise) if name == "optimisation" else len(data)):
            item = data[index]
            used = time.process_time()
            result, back = method(item)
            seconds.append(time.process_time() - used)
            numbers.append(
                pair_metrics(
                    result, back, item["reference"].numpy(), item["moving"].numpy(),
                    item["field"].numpy(),
                )
            )  # fmt: skip
        rows.append({"method": name, "pairs": len(numbers), **_means(numbers),
                     "CPU-s a pair": float(np.mean(seconds))})  # fmt: skip
    best = _means([affine_share(data[index]) for index in range(len(data))])
    rows.append({"method": "nearest affine of the truth", "pairs": len(data), **best,
                 "inverse px": float("nan"), "CPU-s a pair": float("nan")})  # fmt: skip
    return rows


def _means(numbers: list[dict[str, float]]) -> dict[str, float]:
    mean = {name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]}
    worse = float(np.mean([one["distance_tissue"] > one["distance_tissue_zero"]
                           for one in numbers]))  # fmt: skip
    return {
        "tissue px": mean["distance_tissue"],
        "all px": mean["distance"],
        "removed %": 100 * (1 - mean["distance_tissue"] / mean["distance_tissue_zero"]),
        "worse than none %": 100 * worse,
        "correlation": mean["correlation"],
        "folded %": 100 * mean["folded"],
        "inverse px": mean["inverse"],
    }


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    fast = parts.add_parser("speed")
    fast.add_argument("--shape", type=int, nargs=2, default=[320, 456])
    fast.add_argument("--folder", type=Path, default=Path("output/bench"))
    one = parts.add_parser("one")
    one.add_argument("network", choices=("global", "local"))
    one.add_argument("variant", choices=VARIANTS)
    one.add_argument("shape", type=int, nargs=2)
    for each in (fast, one):
        each.add_argument("--batch", type=int, default=4)
        each.add_argument("--steps", type=int, default=3)
    exact = parts.add_parser("errors")
    exact.add_argument("--pairs", type=Path, required=True)
    exact.add_argument("--networks", type=Path, nargs="*", default=[])
    exact.add_argument("--optimise", type=int, default=0, help="pairs that are optimised")
    many = parts.add_parser("reading")
    many.add_argument("--pairs", type=Path, nargs="+", required=True)
    read = parts.add_parser("read")
    read.add_argument("pairs", type=Path)
    given = parser.parse_args()
    if given.part == "read":
        read_all(given.pairs)
    elif given.part == "reading":
        print(table(reading(given.pairs)))
    elif given.part == "one":
        timed(given.network, given.variant, tuple(given.shape), given.batch, given.steps)
    elif given.part == "speed":
        print(table(speed(tuple(given.shape), given.batch, given.steps, given.folder)))
    else:
        print(table(errors(given.pairs, given.networks, given.optimise)))


if __name__ == "__main__":
    main()
