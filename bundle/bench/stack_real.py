"""Benchmarks over real sections; parts of `bundle.bench.stack`."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bundle.bench.stack_measures import (
    OURS,
    deviations,
)
from bundle.bench.stack_peers import PEERS, Register
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.objective import Objective
from scripts.stack.pair import PairRegistration, Schedule
from scripts.stack.planar import PlanarModel, Plane
from scripts.stack.pyramid import Pyramid

__all__ = ["lung", "mouse"]


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
