"""Registration of stacks of sections beside pystackreg, SimpleITK, OpenCV and a loop of Adam.

    python -m bundle.bench.stack straight <folder>
    python -m bundle.bench.stack long <folder>
    python -m bundle.bench.stack banana <folder>
    python -m bundle.bench.stack em <folder>
    python -m bundle.bench.stack lung <folder> --data <landmarks/cima_lung3>
    python -m bundle.bench.stack mouse <folder> --data <stack/glta_mouse>
    python -m bundle.bench.stack memory <folder> --sections 100 400

Each part writes its figures as JSON and as a Markdown table into the folder. Times are
CPU-seconds of one thread. The peers are those of `bundle.bench.stack_peers`; one that isn't
installed is left out and named.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.bench.em_sections import EmSections
from bundle.bench.stack_memory import memory
from bundle.bench.stack_peers import PEERS, Register
from scripts.phantom.serial_sections import SerialSections
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.objective import Objective
from scripts.stack.pair import PairRegistration, Schedule
from scripts.stack.placement import follow
from scripts.stack.planar import PlanarModel, Plane, corner_distance
from scripts.stack.pyramid import Pyramid
from scripts.stack.solving import MeasuredPair, solve

OURS = "ours"
Matrices = np.ndarray
"""``(sections, 3, 3)``, pixels."""


# ---------------------------------------------------------------------------------------------
# Stacks with known transforms
# ---------------------------------------------------------------------------------------------


class Chain:
    """Sections registered pair by pair by any method, and ours solved over all pairs.

    Args:
        images: ``(rows, columns)`` float32 of 0..1, one a section.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = images
        self.plane = Plane((images[0].shape[0], images[0].shape[1]), (1.0, 1.0))
        self.seconds = 0.0
        self.failures = 0

    def compose(self, register: Register) -> Matrices:
        """Neighbours composed, as the peers' users do."""
        composed = [np.eye(3)]
        self.seconds, self.failures = 0.0, 0
        for fixed, moving in itertools.pairwise(self.images):
            start = time.process_time()
            try:
                result = register(fixed, moving)
            except Exception as error:  # a peer that gives up on a pair leaves it unregistered
                print(f"  a pair fails: {type(error).__name__}: {str(error)[:80]}")
                result, self.failures = np.eye(3), self.failures + 1
            self.seconds += time.process_time() - start
            composed.append(result @ composed[-1])
        self.seconds /= len(self.images) - 1
        return np.stack(composed)

    def ours(self, transformation: str = "rigid", neighbours: int = 2) -> Matrices:
        """Pairs and solve as `register-stack` has them."""
        model = PlanarModel(transformation)
        registration = PairRegistration(model, Objective("ncc"), Schedule())
        pyramids: dict[int, Pyramid] = {}
        pairs = []
        count = len(self.images)
        start = time.process_time()
        for first in range(count):
            for second in range(first + 1, min(first + 1 + neighbours, count)):
                for z in (first, second):
                    if z not in pyramids:
                        pyramids[z] = Pyramid(self.images[z], self.plane, (8, 4, 2, 1))
                result = registration(pyramids[first], pyramids[second])
                pairs.append(
                    MeasuredPair(
                        first, second, result.matrix, result.mirrored, result.correlation,
                        second - first,
                    )
                )  # fmt: skip
            pyramids.pop(first, None)
        self.seconds = (time.process_time() - start) / len(pairs)
        matrices = solve(count, pairs, 0, model, self.plane).matrices
        return np.stack([self.plane.pixel_matrix(one) for one in matrices])


def pair_errors(estimate: Matrices, truth: Matrices, step: int, plane: Plane) -> np.ndarray:
    """Largest error over the five points of the map from each section to the ``step``-th next."""

    def between(matrices: Matrices, z: int) -> np.ndarray:
        return plane.physical_matrix(matrices[z + step] @ np.linalg.inv(matrices[z]))

    return np.array(
        [
            corner_distance(between(estimate, z), between(truth, z), plane)
            for z in range(len(truth) - step)
        ]
    )


def deviations(
    estimate: Matrices, truth: Matrices, plane: Plane, centred: bool = True
) -> np.ndarray:
    """R.m.s. over the five points of the position of each section against the truth, pixels.

    Args:
        found: of a method.
        truth: the known ones.
        plane: of a section.
        centred: take off the mean displacement: the position of the whole stack is arbitrary.
    """
    points = plane.to_pixels @ plane.five_points
    apart = np.stack(
        [(np.linalg.inv(a) @ b @ points - points)[:2] for a, b in zip(estimate, truth, strict=True)]
    )
    if centred:
        apart = apart - apart.mean(0)
    return np.sqrt((apart**2).sum(1).mean(1))


def second_difference(
    estimate: Matrices, truth: Matrices, plane: Plane, skip: Sequence[int]
) -> float:
    """R.m.s. of the second difference of the error, pixels, away from damaged sections."""
    points = plane.to_pixels @ plane.five_points
    kept = [z for z in range(len(truth)) if z not in skip]
    apart = np.stack([(np.linalg.inv(estimate[z]) @ truth[z] @ points - points)[:2] for z in kept])
    second = apart[2:] - 2 * apart[1:-1] + apart[:-2]
    return float(np.sqrt((second**2).sum(1).mean()))


def images_of(sections: SerialSections | EmSections) -> list[np.ndarray]:
    """Float32, 0..1."""
    return [sections.section(z).astype(np.float32) / 255 for z in range(sections.count)]


def rows_of(chain: Chain, kinds: Mapping[str, Callable[[], Matrices]]) -> Any:
    """Name, matrices, CPU-seconds a pair and failures of each method that is installed."""
    for name, run in kinds.items():
        print(name, flush=True)
        try:
            matrices = run()
        except ImportError as error:
            print(f"  is left out: {error}")
            continue
        yield name, matrices, chain.seconds, chain.failures
        chain.failures = 0


def methods(chain: Chain, transformation: str) -> dict[str, Callable[[], Matrices]]:
    """Ours and the peers' of one family."""
    peers = {
        name: (lambda register=register: chain.compose(register))
        for name, register in PEERS[transformation].items()
    }
    return {OURS: lambda: chain.ours(transformation), **peers}


def straight(options: argparse.Namespace) -> list[dict[str, Any]]:
    """40 sections of 512x512, one of which half is gone, one that shows something else."""
    torn, ruined = (13,), (27,)
    size = options.size or 512
    sections = SerialSections(
        options.count or 40, (size, size), seed=3, angle=2.0, shift=10.0 * size / 512, torn=torn,
        ruined=ruined,
    )  # fmt: skip
    chain, damaged = Chain(images_of(sections)), {*torn, *ruined}
    truth, rows = sections.composed, []
    for name, estimate, seconds, failures in rows_of(chain, methods(chain, "rigid")):
        near = pair_errors(estimate, truth, 1, chain.plane)
        over = pair_errors(estimate, truth, 2, chain.plane)
        sound = [z for z in range(len(near)) if not damaged & {z, z + 1}]
        kept = [z for z in range(len(truth)) if z not in damaged]
        rows.append(
            {
                "method": name,
                "pair error, median": float(np.median(near[sound])),
                "worst": float(near[sound].max()),
                "over damage, worst": float(max(over[z - 1] for z in damaged)),
                "deviation, r.m.s.": float(
                    np.sqrt((deviations(estimate[kept], truth[kept], chain.plane) ** 2).mean())
                ),
                "second difference": second_difference(estimate, truth, chain.plane, [*damaged]),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def long(options: argparse.Namespace) -> list[dict[str, Any]]:
    """100 sections of 256x256: drift of a chain."""
    sections = SerialSections(options.count or 100, (256, 256), seed=5, shift=5.0)
    chain = Chain(images_of(sections))
    truth, rows = sections.composed, []
    wanted = methods(chain, "rigid")
    for name in ("SimpleITK Mattes", "Adam loop", "OpenCV ECC"):  # minutes, and known by `straight`
        wanted.pop(name)
    for name, estimate, seconds, failures in rows_of(chain, wanted):
        near = pair_errors(estimate, truth, 1, chain.plane)
        rows.append(
            {
                "method": name,
                "step, median": float(np.median(near)),
                "worst": float(near.max()),
                "end": float(deviations(estimate, truth, chain.plane, centred=False)[-1]),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def em(options: argparse.Namespace) -> list[dict[str, Any]]:
    """20 sections of 512x512 like electron micrographs: see `EmSections`."""
    size = options.size or 512
    sections = EmSections(options.count or 20, (size, size), seed=2)
    chain = Chain(images_of(sections))
    rows = []
    for name, result, seconds, failures in rows_of(chain, methods(chain, "rigid")):
        near = pair_errors(result, sections.composed, 1, chain.plane)
        rows.append(
            {
                "method": name,
                "pair error, median": float(np.median(near)),
                "worst": float(near.max()),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def banana(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An organ that bends by 60 pixels: what the chain takes away, and what placements keep."""
    sections = SerialSections(
        options.count or 60, (256, 256), seed=11, angle=1.0, shift=2.0, bend=options.bend
    )
    straight_one = SerialSections(sections.count, (256, 256), seed=11, angle=1.0, shift=2.0)
    random = np.random.default_rng(0)
    rows = []
    for anatomy, stack in (("bent", sections), ("straight", straight_one)):
        chain = Chain(images_of(stack))
        truth = stack.composed
        known = [chain.plane.physical_matrix(one) for one in truth]
        model = PlanarModel("rigid")
        noisy = {}
        for z, one in enumerate(known):
            by = np.array([np.radians(random.normal(0, 1.0)), *random.normal(0, 4.0, 2)])
            by[1:] /= chain.plane.half_width
            noisy[z] = model.matrix(by, chain.plane) @ one
        every = {z: known[z] for z in range(0, stack.count, 8)}
        still = {z: np.eye(3) for z in range(stack.count)}
        chained = np.stack([chain.plane.physical_matrix(one) for one in chain.ours()])
        placed = {
            "none": chained,
            **{
                name: follow(chained, placements, model, chain.plane, options.sigma)
                for name, placements in (
                    ("scanner", still), ("1 degree, 4 px noise", noisy), ("every 8th known", every),
                )
            },
        }  # fmt: skip
        for name, matrices in placed.items():
            estimate = np.stack([chain.plane.pixel_matrix(one) for one in matrices])
            off = deviations(estimate, truth, chain.plane)
            rows.append(
                {
                    "anatomy": anatomy,
                    "placement": name,
                    "off, r.m.s.": float(np.sqrt((off**2).mean())),
                    "worst": float(off.max()),
                    "second difference": second_difference(estimate, truth, chain.plane, []),
                }
            )
    return rows


# ---------------------------------------------------------------------------------------------
# Real sections
# ---------------------------------------------------------------------------------------------


def lung(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Five stained sections with 80 landmarks: the median distance of each of ten pairs."""
    from imageio.v3 import imread

    from scripts.stack.source import luminance

    files = sorted(Path(options.data).glob("*.jpg"))
    values = [luminance(imread(file)) / 255 for file in files]
    shape = tuple(max(one.shape[axis] for one in values) for axis in (0, 1))
    plane = Plane((shape[0], shape[1]), (1.0, 1.0))
    images, points, masks = [], [], []
    for file, one in zip(files, values, strict=True):
        rows, columns = ((n - m) // 2 for n, m in zip(shape, one.shape, strict=True))
        canvas = np.full(shape, np.median(one), dtype=np.float32)
        known = np.zeros(shape, dtype=bool)
        place = (slice(rows, rows + one.shape[0]), slice(columns, columns + one.shape[1]))
        canvas[place], known[place] = one, True
        with Path(f"{file.with_suffix('')}_landmarks_5pc.csv").open() as table:
            marks = [[float(row["Y"]) + rows, float(row["X"]) + columns, 1.0]
                     for row in csv.DictReader(table)]  # fmt: skip
        images.append(canvas)
        masks.append(known)
        points.append(np.array(marks).T)

    def ours(i: int, j: int) -> np.ndarray:
        registration = PairRegistration(PlanarModel("affine"), Objective("ncc"), Schedule())
        one, other = (Pyramid(images[k], plane, (8, 4, 2, 1), masks[k]) for k in (i, j))
        return plane.pixel_matrix(registration(one, other).matrix)

    def of_peer(peer: Register) -> Callable[[int, int], np.ndarray]:
        return lambda i, j: peer(images[i], images[j])

    kinds: dict[str, Callable[[int, int], np.ndarray]] = {
        "unregistered": lambda i, j: np.eye(3),
        "affine fitted to the landmarks": lambda i, j: _fitted(points[i], points[j]),
        OURS: ours,
    }
    for name, peer in PEERS["affine"].items():
        kinds[name] = of_peer(peer)
    rows_found = []
    for name, register in kinds.items():
        print(name, flush=True)
        medians, seconds, failures = [], 0.0, 0
        for i, j in itertools.combinations(range(len(files)), 2):
            start = time.process_time()
            try:
                matrix = register(i, j)
            except ImportError:
                break
            except Exception as error:  # as in `Chain.compose`
                print(f"  a pair fails: {type(error).__name__}: {str(error)[:80]}")
                matrix, failures = np.eye(3), failures + 1
            seconds += time.process_time() - start
            apart = (matrix @ points[i] - points[j])[:2]
            medians.append(float(np.median(np.sqrt((apart**2).sum(0)))))
        if medians:
            rows_found.append(
                {
                    "method": name,
                    "median": float(np.median(medians)),
                    "worst": max(medians),
                    "CPU-s a pair": seconds / len(medians),
                    "failures": failures,
                }
            )
    return rows_found


def _fitted(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    result = np.eye(3)
    result[:2] = np.linalg.lstsq(source.T, target[:2].T, rcond=None)[0].T
    return result


def mouse(options: argparse.Namespace) -> list[dict[str, Any]]:
    """35 sections with QuickNII's anchoring: distance from it, by placement."""
    from scripts.stack.placement import read_placement
    from scripts.stack.registering import StackRegistration
    from scripts.stack.transforms import read_transforms

    data, rows = Path(options.data), []
    anchors = data / "anchoring.json"
    for transformation, placement in (
        ("rigid", "none"), ("rigid", "scanner"), ("rigid", str(anchors)), ("affine", "none"),
    ):  # fmt: skip
        output = Path(options.folder) / f"mouse_{transformation}_{Path(placement).stem}"
        settings = RegisterStackConfig.load(
            {
                "stack": str(data), "spacing": [0.1, 0.022, 0.022], "unit": "millimeter",
                "transformation": transformation, "placement": placement, "n_workers": 1,
                "crop_borders": False,
            }
        )  # fmt: skip
        start = time.process_time()
        StackRegistration(settings, output).run()
        seconds = time.process_time() - start
        known = read_transforms(output / "registered_stack" / "transforms.json")
        plane = Plane(known.shape, (1.0, 1.0))
        model = PlanarModel("rigid")
        names = [section.name for section in known.sections]
        anchored = read_placement(anchors, names, plane, "millimeter", model)
        truth = np.stack([plane.pixel_matrix(anchored[z]) for z in sorted(anchored)])
        estimate = known.matrices[sorted(anchored)]
        off = deviations(estimate, truth, plane)
        correlations = [s.correlation for s in _records(output) if s.correlation is not None]
        rows.append(
            {
                "transformation": transformation,
                "placement": Path(placement).stem,
                "against anchoring, r.m.s.": float(np.sqrt((off**2).mean())),
                "worst": float(off.max()),
                "correlation of pairs, median": float(np.median(correlations)),
                "CPU-s": seconds,
            }
        )
    return rows


def _records(output: Path) -> list[Any]:
    from types import SimpleNamespace

    content = json.loads((output / "registered_stack" / "transforms.json").read_text())
    return [SimpleNamespace(**one) for one in content["sections"]]


# ---------------------------------------------------------------------------------------------
# What is run
# ---------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0])

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell(row[name]) for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run a part."""
    parts = {
        "straight": straight, "long": long, "banana": banana, "em": em, "lung": lung,
        "mouse": mouse, "memory": memory,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="of lung and mouse")
    parser.add_argument("--count", type=int, help="sections, instead of the part's default")
    parser.add_argument("--size", type=int, help="pixels a side (straight: 512, memory: 2048)")
    parser.add_argument("--sigma", type=float, default=8.0, help="of the placement (banana)")
    parser.add_argument("--bend", type=float, default=60.0, help="pixels (banana)")
    parser.add_argument("--sections", type=int, nargs="+", default=[100, 400], help="of memory")
    parser.add_argument("--pairs", type=int, help="max_pairs of memory: the rest follows")
    parser.add_argument("--workers", type=int, default=4, help="of memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = parts[options.part](options)
    (options.folder / f"{options.part}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.folder / f"{options.part}.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
