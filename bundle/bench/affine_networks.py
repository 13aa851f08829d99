"""Measures affine networks: capture range, alone and as the initialisation of a refinement.

    python -m bundle.bench.affine_networks <output> --dataset_dir <folder> \\
        --models models/affine_model.pt [another.pt ...]

Pairs are made from the subjects that no network was trained on (with --everyone: from all). The
fixed image is unchanged; the moving one is transformed by a known rigid transform about the
volume's centre, a rotation about a random axis and a translation in a random direction. Errors are
means over pairs, times are CPU-seconds. With --refine the same pairs are also refined: from the
identity, from the default initialisations, and from each network's estimate. The results are
written as JSON, as a Markdown table and as a picture of the capture range.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.affine.inference import estimate_matrix, load_affine_network
from scripts.affine.network import AffineNetwork
from scripts.metrics.matrices import matrix_errors
from scripts.pairwise.images import read_image, read_pair_images
from scripts.pairwise.network_grid import between_0_and_1
from scripts.registration.affine import AffineRefinement
from scripts.registration.images import WorldImage
from scripts.settings.affine import LearnedAffineConfig
from scripts.spatial.affine_parameters import Frame
from scripts.spatial.resampling import resample_by_matrix

CASES = ((0.0, 0.0), (10.0, 0.0), (20.0, 0.0), (30.0, 0.0), (45.0, 0.0), (60.0, 0.0), (90.0, 0.0))
SHIFTS = (0.125, 0.25, 0.5, 0.75)
"""Translations, as shares of half the volume's shortest side: 10, 20, 40 and 60 mm for a head with
a half side of 80 mm."""

Image = tuple[np.ndarray, np.ndarray]


def rigid_apart(
    image: Image, degrees: float, millimetres: float, rng: np.random.Generator
) -> tuple[np.ndarray, torch.Tensor]:
    """A transformed image on its grid, and the true matrix, fixed to moving (RAS)."""
    data, affine = image
    frame = Frame.of_grid(affine, data.shape)
    axis, direction = rng.normal(size=(2, 3))
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    centre = frame.centre.numpy()
    truth = np.eye(4)
    truth[:3, :3] = turn
    truth[:3, 3] = centre - turn @ centre + direction / np.linalg.norm(direction) * millimetres
    away = torch.from_numpy(np.linalg.inv(truth))[None]
    values = torch.from_numpy(data.astype(np.float32))[None, None]
    moved = resample_by_matrix(values, affine, away, affine, data.shape)[0, 0].numpy()
    return moved, torch.from_numpy(truth)


def errors_about_centre(estimate: torch.Tensor, truth: torch.Tensor, image: Image) -> list[float]:
    """Degrees, mm at the centre, and root mean square mm over the volume."""
    data, affine = image
    frame = Frame.of_grid(affine, data.shape)
    world = frame.world
    local = [torch.linalg.solve(world, one @ world)[None] for one in (estimate, truth)]
    measured = matrix_errors(local[0], local[1], frame.half_width)
    return [float(value) for value in measured.values()]


def capture_curve(
    networks: Mapping[str, AffineNetwork],
    images: Sequence[Image],
    repeats: int = 2,
    refine: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each distance: mean errors of each network, and of refinement if requested."""
    rng = np.random.default_rng(seed)
    half = min(float(Frame.of_grid(a, d.shape).half_width.min()) for d, a in images)
    cases = [*CASES, *((0.0, share * half) for share in SHIFTS), (30.0, 0.25 * half)]
    rows = []
    for degrees, millimetres in cases:
        estimate: dict[str, list[list[float]]] = {}
        for image in images:
            for _ in range(repeats):
                data, affine = image
                moving, truth = rigid_apart(image, degrees, millimetres, rng)
                for name, matrix, spent in _found(networks, data, moving, affine, refine):
                    measured = errors_about_centre(matrix.double(), truth, image)
                    estimate.setdefault(name, []).append([*measured, spent])
        row: dict[str, Any] = {"rotation, degrees": degrees, "translation, mm": millimetres}
        for name, values in estimate.items():
            mean = np.mean(values, axis=0)
            labels = ("degrees", "mm", "distance, mm", "CPU-s")
            row.update({f"{name}: {one}": float(m) for one, m in zip(labels, mean, strict=True)})
        rows.append(row)
        print({key: round(value, 3) for key, value in row.items()}, flush=True)
    return rows


def _found(
    networks: Mapping[str, AffineNetwork],
    fixed: np.ndarray,
    moving: np.ndarray,
    affine: np.ndarray,
    refine: bool,
) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Each method's name, matrix and CPU-seconds for a pair."""
    starts: dict[str, tuple[Sequence[str], torch.Tensor | None]] = {
        "refinement from the identity": ((), None),
        "refinement, default initialisations": (("identity", "centre", "axes"), None),
    }
    for name, network in networks.items():
        begun = time.process_time()
        estimate = estimate_matrix(network, fixed, affine, moving, affine)
        yield name, estimate, time.process_time() - begun
        starts[f"{name}, then refinement"] = ((), rigid_part(estimate, (fixed, affine)))
    if not refine:
        return
    pair = [
        WorldImage(torch.from_numpy(one.astype(np.float32))[None, None], affine)
        for one in (fixed, moving)
    ]
    for name, (kinds, start) in starts.items():
        begun = time.process_time()
        matrix = AffineRefinement("rigid", kinds)(pair[0], pair[1], start).matrix
        yield name, matrix, time.process_time() - begun


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Remaining root mean square distance, against rotation and translation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [key.partition(":")[0] for key in rows[0] if key.endswith("distance, mm")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for place, along, other in (
        (axes[0], "rotation, degrees", "translation, mm"),
        (axes[1], "translation, mm", "rotation, degrees"),
    ):
        chosen = [row for row in rows if row[other] == 0]
        for name in names:
            style = "--" if name.startswith("refinement") else ":" if "then" in name else "-"
            left = [row[f"{name}: distance, mm"] for row in chosen]
            place.plot([row[along] for row in chosen], left, f"o{style}", label=name, markersize=4)
        place.set_xlabel(f"{along} apart")
    # Refined pairs end near 0, networks outside their capture range at many mm.
    axes[0].set_yscale("symlog", linthresh=0.1)
    axes[0].set_ylabel("distance left, mm r.m.s.")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rigid_part(matrix: torch.Tensor, image: Image) -> torch.Tensor:
    """The rotation nearest to a matrix, with its image of the volume's centre."""
    data, affine = image
    centre = Frame.of_grid(affine, data.shape).centre
    left, _, right = torch.linalg.svd(matrix[:3, :3])
    rigid = torch.eye(4, dtype=torch.float64)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = matrix[:3, :3] @ centre + matrix[:3, 3] - rigid[:3, :3] @ centre
    return rigid


def named_networks(paths: Sequence[Path]) -> dict[str, AffineNetwork]:
    """Networks by their kind, with a number if a kind occurs twice."""
    result: dict[str, AffineNetwork] = {}
    for path in paths:
        network = load_affine_network(path)
        name = network.description["settings"]["model"]["kind"]
        result[name if name not in result else f"{name} {len(result) + 1}"] = network
    return result


def trained_on(networks: Mapping[str, AffineNetwork]) -> set[str]:
    """Subjects in the training of any of the networks."""
    return {name for one in networks.values() for name in one.description["trained_on"]}


def held_out_images(
    networks: Mapping[str, AffineNetwork], dataset_dir: Path, everyone: bool, count: int
) -> list[Image]:
    """Images that no network was trained on, with the settings of the first network."""
    described = next(iter(networks.values())).description
    settings = LearnedAffineConfig.load({**described["settings"], "fold": None, "device": "cpu"})
    known = set() if everyone else trained_on(networks)
    images = []
    for subject in read_pair_images(dataset_dir, settings).subjects:
        if subject.name not in known:
            data, grid = read_image(subject.paths)
            images.append((between_0_and_1(data, settings.images.log_share), grid.affine))
    return images[:count]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="destination of the figures")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="checkpoints")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5, help="most subjects")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of each")
    parser.add_argument("--everyone", action="store_true")
    parser.add_argument("--refine", action="store_true")
    given = parser.parse_args()
    networks = named_networks(given.models)
    images = held_out_images(networks, given.dataset_dir, given.everyone, given.count)
    if not images:
        parser.error("the networks were trained on all subjects there; see --everyone")
    rows = capture_curve(networks, images, given.repeats, given.refine)
    given.folder.mkdir(parents=True, exist_ok=True)
    draw(rows, given.folder / "affine_networks.png")
    (given.folder / "affine_networks.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(f'{row[key]:.3g}' for key in head)} |" for row in rows]
    (given.folder / "affine_networks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
