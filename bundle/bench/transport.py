"""Measures the propagation of labels: accuracy, outliers, time and memory, compared with peers.

    python -m bundle.bench.transport synthetic --counts 5000 20000 100000 --threads 2
    python -m bundle.bench.transport real --phybers <trk> --dipy <folder> --threads 2

Each measurement runs in a separate process, whose peak memory and CPU seconds it reports. Peers:
`nearest`, the label of the nearest atlas fibre (in either direction, no outliers), and GeomLoss
with the settings of its example (scaling 0.9, KeOps, both sides with their mirror images), if
geomloss and pykeops are installed. `--output <stem>` writes JSON and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.bench.transport_phantom import COURSE, WALK, synthetic_fibres
from scripts.settings.label_transfer import LabelTransferConfig
from scripts.tractograms import Streamlines
from scripts.transport.clusters import cluster_classes, cluster_fibres, flipped
from scripts.transport.features import fibre_features
from scripts.transport.labelling import OUTLIER, label_fibres
from scripts.transport.segmented_atlas import read_atlas

SOLVERS = ("own", "dense", "geomloss", "example", "nearest")
"""own: the default; example: GeomLoss' example; geomloss: our option of that name."""

Labels = tuple[np.ndarray, np.ndarray]


def vectors(fibres: np.ndarray, settings: LabelTransferConfig) -> np.ndarray:
    """Features of fibres ``(n, points, 3)``."""
    n, points, _ = fibres.shape
    streamlines = Streamlines(fibres.reshape(-1, 3), np.arange(n + 1) * points)
    return fibre_features(streamlines, settings.n_points, settings.end_weight).vectors


def nearest(x: np.ndarray, y: np.ndarray, classes: np.ndarray) -> Labels:
    """Label of the nearest atlas fibre or mirror image."""
    atlas = torch.as_tensor(y)
    both = torch.cat([atlas, flipped(atlas)])
    half = both.square().sum(1) / 2
    result = [torch.addmm(-half, part, both.T).argmax(1) for part in torch.as_tensor(x).split(256)]
    return classes[(torch.cat(result) % len(y)).numpy()], np.ones(len(x), np.float32)


def example(x: np.ndarray, y: np.ndarray, classes: np.ndarray, threads: int) -> Labels:
    """GeomLoss as in its example: scaling 0.9, multiscale, masses from its potentials."""
    from geomloss import SamplesLoss
    from pykeops.torch import LazyTensor

    blur, sides, scales = 3.0, [], []
    for fibres, of in ((x, None), (y, classes)):
        tensor = torch.as_tensor(fibres)
        k = min(1000, len(tensor) // 10)
        c = (
            cluster_fibres(tensor, k, 0)
            if of is None
            else cluster_classes(tensor, torch.as_tensor(of), 1, 0)
        )
        labels = torch.cat([c.labels * 2 + c.turned, c.labels * 2 + ~c.turned])
        _, labels = torch.unique(labels, return_inverse=True)
        both = torch.cat([tensor, flipped(tensor)])
        sides += [labels.int(), both.new_full((len(both),), 1 / len(both)), both]
        scales.append(c.scale)
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=blur, reach=20, scaling=0.9, cluster_scale=max(scales),
        debias=False, potentials=True, backend="multiscale",
    )  # fmt: skip
    f, g = (potential.detach().reshape(-1) for potential in loss(*sides))
    f, atlas = f[: len(x)], sides[5]
    masses = torch.zeros(len(x), int(classes.max()) + 1)
    both_classes = torch.as_tensor(classes).repeat(2)
    for kind in range(masses.shape[1]):
        members = both_classes == kind
        xi = LazyTensor(torch.as_tensor(x)[:, None])
        yj = LazyTensor(atlas[members].contiguous()[None])
        fi, gj = LazyTensor(f[:, None, None].contiguous()), LazyTensor(g[members][None, :, None])
        plan = ((fi + gj - ((xi - yj) ** 2).sum(-1) / 2) / blur**2).exp()
        masses[:, kind] = plan.sum(1)[:, 0] / len(atlas)
    largest, result = masses.max(1)
    return torch.where(largest >= 0.2, result, OUTLIER).numpy(), largest.numpy()


def labels_by(
    solver: str, x: np.ndarray, y: np.ndarray, classes: np.ndarray, threads: int
) -> Labels:
    """Labels and largest masses by one of `SOLVERS`."""
    if solver == "nearest":
        return nearest(x, y, classes)
    if solver == "example":
        return example(x, y, classes, threads)
    asked = {"own": "auto"}.get(solver, solver)
    labelling = label_fibres(
        x, y, classes, LabelTransferConfig.load({"solver": asked, "threads": threads})
    )
    if solver == "geomloss" and labelling.solver["name"] != "geomloss":
        raise SystemExit("geomloss doesn't work here")
    return labelling.classes, labelling.largest


def score(truth: np.ndarray, estimate: np.ndarray, mass: np.ndarray) -> dict[str, float]:
    """Accuracy of inliers (outlier labels count as wrong), detected outliers, non-finite masses."""
    inlier = truth >= 0
    result = {
        "accuracy": float((estimate == truth)[inlier].mean()),
        "inliers_lost": float((estimate == OUTLIER)[inlier].mean()),
        "not_finite": int((~np.isfinite(mass)).sum()),
    }
    if not inlier.all():
        result["outlier_recall"] = float((estimate == OUTLIER)[~inlier].mean())
        for name, kind in (("courses", COURSE), ("walks", WALK)):
            result[f"recall_of_{name}"] = float((estimate == OUTLIER)[truth == kind].mean())
        result["outlier_recall_at_0.4"] = float((mass < 0.4)[~inlier].mean())
        result["inliers_lost_at_0.4"] = float((mass < 0.4)[inlier].mean())
    return result


def timed(run: Callable[[], Labels]) -> tuple[Labels, dict[str, float]]:
    """Result, wall and CPU seconds and growth of peak memory of a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result, {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak / 1024,
        "peak_growth_mb": (peak - before) / 1024,
    }


def synthetic(solver: str, count: int, threads: int) -> dict[str, Any]:
    """One solver on the synthetic atlas; features are made before the clock starts."""
    settings = LabelTransferConfig()
    subject, truth, atlas, classes = synthetic_fibres(count)
    x, y = vectors(subject, settings), vectors(atlas, settings)
    del subject, atlas
    if solver in ("geomloss", "example"):
        labels_by(solver, x[:200], y[::10], classes[::10], threads)  # KeOps compiles on first use
    else:
        labels_by(solver, x[:50], y[::50], classes[::50], threads)
    (estimate, mass), cost = timed(lambda: labels_by(solver, x, y, classes, threads))
    lost = np.flatnonzero(truth < 0)
    # With one atlas fibre at distance d, a fibre keeps about exp(-d^2 / (2 reach^2)) of its mass.
    limit = settings.reach * np.sqrt(-2 * np.log(settings.outlier_threshold))
    far = lost[distances(x[lost], y) > limit]
    extra = {
        "outliers_beyond_limit": len(far) / len(lost),
        "recall_beyond_limit": float((estimate == OUTLIER)[far].mean()),
    }
    return {"solver": solver, "fibres": count, **score(truth, estimate, mass), **extra, **cost}


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each fibre to the nearest atlas fibre or mirror image, mm."""
    atlas = torch.as_tensor(y)
    both = torch.cat([atlas, flipped(atlas)])
    return torch.cat(
        [torch.cdist(part, both).amin(1) for part in torch.as_tensor(x).split(64)]
    ).numpy()


def _split(fibres: np.ndarray, classes: np.ndarray, left_out: float) -> tuple[np.ndarray, ...]:
    out = np.random.default_rng(0).random(len(fibres)) < left_out
    return fibres[out], classes[out], fibres[~out], classes[~out]


def real(solver: str, phybers: Path | None, dipy: Path | None, threads: int) -> dict[str, Any]:
    """An atlas with held-out streamlines, and one person's bundles with another's."""
    settings = LabelTransferConfig()
    result: dict[str, Any] = {"solver": solver}

    def features(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        atlas = read_atlas(path, "label", None)
        made = fibre_features(atlas.streamlines, settings.n_points, settings.end_weight)
        return made.vectors, atlas.classes[made.kept], atlas.names

    if phybers is not None:
        x, truth, y, classes = _split(*features(phybers)[:2], left_out=0.2)
        (estimate, mass), cost = timed(lambda: labels_by(solver, x, y, classes, threads))
        result["left_out"] = {
            "fibres": [len(x), len(y)], **score(truth, estimate, mass), **cost
        }  # fmt: skip
    if dipy is not None:
        people = [features(folder) for folder in sorted(dipy.iterdir()) if folder.is_dir()]
        scores = []
        for i, (x, truth, names) in enumerate(people):
            for j, (y, classes, others) in enumerate(people):
                if i != j:
                    assert names == others
                    # Native spaces: only their centres are aligned.
                    moved = x + _shift(x, y)
                    scores.append(score(truth, *labels_by(solver, moved, y, classes, threads)))
        result["between_people"] = {
            "pairs": len(scores),
            "accuracy": float(np.mean([one["accuracy"] for one in scores])),
            "worst": min(one["accuracy"] for one in scores),
            "inliers_lost": float(np.mean([one["inliers_lost"] for one in scores])),
            "not_finite": sum(one["not_finite"] for one in scores),
        }
    return result


def _shift(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Translate ``x`` so that its mean point is that of ``y``."""
    settings = LabelTransferConfig()
    weight = np.ones(settings.n_points)
    weight[[0, -1]] = settings.end_weight
    weight /= np.sqrt(settings.n_points)

    def middle(side: np.ndarray) -> np.ndarray:
        return (side.reshape(len(side), -1, 3) / weight[:, None]).mean((0, 1))

    return (weight[:, None] * (middle(y) - middle(x))).ravel().astype(np.float32)


def _table(rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = (row.get(key, "") for key in keys)
        shown = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _in_process(arguments: list[str], limit: float) -> dict[str, Any] | None:
    """Run a measurement in a new process; None if it fails or takes too long, with a message."""
    command = [sys.executable, "-m", "bundle.bench.transport", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{' '.join(arguments)}: more than {limit:g} s", file=sys.stderr)
        return None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["failed"])[-1]
        print(f"{' '.join(arguments)}: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("synthetic", "real"))
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 20000, 100000])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=["own", "nearest"])
    parser.add_argument("--phybers", type=Path)
    parser.add_argument("--dipy", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--limit", type=float, default=1800, help="seconds per measurement")
    parser.add_argument("--output", type=Path, help="stem of a .json and a .md file")
    parser.add_argument("--one", choices=SOLVERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        torch.set_num_threads(asked.threads)
        if asked.what == "synthetic":
            print(json.dumps(synthetic(asked.one, asked.counts[0], asked.threads)))
        else:
            print(json.dumps(real(asked.one, asked.phybers, asked.dipy, asked.threads)))
        return
    common = [asked.what, "--threads", str(asked.threads)]
    for name in ("phybers", "dipy"):
        if getattr(asked, name):
            common += [f"--{name}", str(getattr(asked, name))]
    rows = []
    for count in asked.counts if asked.what == "synthetic" else [0]:
        for solver in asked.solvers:
            row = _in_process([*common, "--one", solver, "--counts", str(count)], asked.limit)
            if row is not None:
                row["load"] = os.getloadavg()[0]
                rows.append(row)
                print(json.dumps(row), flush=True)
    flat = [
        {k: v for k, v in row.items() if not isinstance(v, dict)}
        | {f"{k}.{n}": m for k, v in row.items() if isinstance(v, dict) for n, m in v.items()}
        for row in rows
    ]
    print(_table(flat))
    if asked.output:
        about = {"machine": platform.processor() or platform.machine(), "threads": asked.threads}
        text = json.dumps({**about, "rows": rows}, indent=1)
        asked.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        asked.output.with_suffix(".md").write_text(_table(flat) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
