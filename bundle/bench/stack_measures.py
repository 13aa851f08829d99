"""What the benchmarks of stacks measure: chains of pairs by any method, and their errors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bundle.bench.em_sections import EmSections
from bundle.bench.stack_peers import PEERS, Register
from scripts.phantom.serial_sections import SerialSections
from scripts.stack.objective import Objective
from scripts.stack.pair import PairRegistration, Schedule
from scripts.stack.planar import PlanarModel, Plane, corner_distance
from scripts.stack.pyramid import Pyramid
from scripts.stack.solving import MeasuredPair, solve

__all__ = [
    "OURS",
    "Chain",
    "Matrices",
    "deviations",
    "images_of",
    "methods",
    "pair_errors",
    "rows_of",
    "second_difference",
]

OURS = "ours"
Matrices = np.ndarray
"""``(sections, 3, 3)``, pixels."""


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
        estimate: of a method.
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
