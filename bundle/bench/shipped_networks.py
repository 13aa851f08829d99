"""Measures the networks that ship on pairs unlike those of their training, beside optimisation.

    python -m bundle.bench.shipped_networks capture <output> --dataset_dir <folder> \\
        --image '{subject}/t2_native.nii.gz' --labels '{subject}/label_native.nii.gz'
    python -m bundle.bench.shipped_networks affine <output> --dataset_dir <folder> ...
    python -m bundle.bench.shipped_networks elastic <output> --dataset_dir <folder> ...

`capture` moves images by known rotations and translations, scales and shears, and reports what each
method leaves of them. `affine` and `elastic` register pairs of subjects: Dice of propagated labels
(mean and least) and CPU-seconds; `elastic` also with the moving image's contrast inverted and in
one like fractional anisotropy (`CONTRASTS`), and the least Jacobian determinant. Written as JSON
and as a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bundle.bench.affine import label_dice, table
from scripts.registration.affine import AffineRefinement
from scripts.registration.contrast import ContrastMatch
from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import ReadImage, WorldImage
from scripts.registration.moved import moved_by
from scripts.registration.network_field import NetworkField, pair_network
from scripts.registration.network_start import shipped_start
from scripts.registration.start_field import StartField
from scripts.spatial.affine_parameters import Frame, matrix_of, parameters_of
from scripts.spatial.grid import Grid
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.volumes import read_volume

ANGLES = (0.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0)
SHIFT = 0.15
"""Standard deviation of translations, half widths."""
SCALE, SHEAR = 0.08, 0.06
DEFAULT = ("identity", "centre", "axes")

Labels = tuple[np.ndarray, Grid]
Affine = Callable[[WorldImage, WorldImage], torch.Tensor]
Elastic = Callable[[WorldImage, WorldImage], StartField | None]
Way = TypeVar("Way")


def by_refinement(
    fixed: WorldImage, moving: WorldImage, starts: Sequence[str] = DEFAULT
) -> torch.Tensor:
    """The matrix of `refine` with these initialisations."""
    return AffineRefinement("affine", starts)(fixed, moving).matrix


def by_network(fixed: WorldImage, moving: WorldImage) -> torch.Tensor:
    """The matrix of the affine network that ships."""
    return shipped_start()(fixed, moving)[0]


def unregistered(_fixed: WorldImage, _moving: WorldImage) -> torch.Tensor:
    """The identity."""
    return torch.eye(4, dtype=torch.float64)


AFFINE: dict[str, Affine] = {
    "network": by_network,
    "refinement, default initialisations": by_refinement,
    "network, then refinement": partial(by_refinement, starts=("network",)),
    "refinement, default initialisations and network": partial(
        by_refinement, starts=(*DEFAULT, "network")
    ),
}

# ---------------------------------------------------------------------------------------------
# Known transforms
# ---------------------------------------------------------------------------------------------


def chosen(ways: dict[str, Way], wanted: Sequence[str] | None) -> dict[str, Way]:
    """The requested methods, in their order; all if none is named.

    Raises:
        SystemExit: a method is unknown.
    """
    unknown = sorted(set(wanted or ()) - set(ways))
    if unknown:
        raise SystemExit(f"--ways {unknown[0]!r}: must be one of {', '.join(map(repr, ways))}")
    return {name: way for name, way in ways.items() if wanted is None or name in wanted}


def capture(
    images: Sequence[ReadImage], repeats: int, wanted: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """A row for each rotation: the error of all parameters by each method."""
    rng = np.random.default_rng(0)
    rows = []
    ways = chosen({"unregistered": unregistered, **AFFINE}, wanted)
    for degrees in ANGLES:
        estimate: dict[str, list[list[float]]] = {}
        for image, _ in itertools.product(images, range(repeats)):
            fixed = image.image
            frame = Frame.of_grid(fixed.affine, fixed.shape)
            truth = known_matrix(rng, degrees, frame)
            away = torch.linalg.inv(truth)[None]
            values = resample_by_matrix(fixed.values, fixed.affine, away, fixed.affine, fixed.shape)
            moving = WorldImage(values, fixed.affine, fixed.inside)
            for name, way in ways.items():
                begun = time.process_time()
                matrix = way(fixed, moving)
                spent = time.process_time() - begun
                estimate.setdefault(name, []).append([*errors(matrix, truth, frame), spent])
        for name, values_of in estimate.items():
            mean = np.mean(values_of, axis=0)
            labels = ("degrees", "mm", "scale", "shear", "CPU-s")
            rows.append(
                {"rotation, degrees": degrees, "method": name, "pairs": len(values_of)}
                | {label: float(one) for label, one in zip(labels, mean, strict=True)}
            )
            print(rows[-1], flush=True)
    return rows


def known_matrix(rng: np.random.Generator, degrees: float, frame: Frame) -> torch.Tensor:
    """``(4, 4)``: a rotation about a random axis, translations, scales and shears."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    turn = np.eye(4)
    turn[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    rest = torch.zeros(1, 12, dtype=torch.float64)
    rest[0, 6:9] = torch.from_numpy(rng.normal(0, SCALE, 3))
    rest[0, 9:] = torch.from_numpy(rng.normal(0, SHEAR, 3))
    moves = torch.zeros(1, 6, dtype=torch.float64)
    moves[0, 3:] = torch.from_numpy(rng.normal(0, SHIFT, 3))
    world = frame.world
    about = world @ torch.from_numpy(turn) @ torch.linalg.inv(world)
    return matrix_of(moves, "rigid", frame)[0] @ about @ matrix_of(rest, "affine", frame)[0]


def errors(estimate: torch.Tensor, truth: torch.Tensor, frame: Frame) -> list[float]:
    """Degrees, mm at the centre, mean error of the scales and of the shears."""
    turns, rests = [], []
    for matrix in (estimate, truth):
        left, _, right = torch.linalg.svd(matrix[:3, :3])
        turns.append(left @ right)
        rests.append(parameters_of(matrix[None], "affine", frame)[0, 6:])
    cosine = float(((turns[0].T @ turns[1]).trace() - 1) / 2)
    moved = (estimate - truth)[:3, :3] @ frame.centre + (estimate - truth)[:3, 3]
    apart = (rests[0] - rests[1]).abs()
    return [
        math.degrees(math.acos(min(1.0, max(-1.0, cosine)))),
        float(moved.norm()),
        float(apart[:3].mean()),
        float(apart[3:].mean()),
    ]


# ---------------------------------------------------------------------------------------------
# Pairs of subjects
# ---------------------------------------------------------------------------------------------


def chosen_pairs(dataset_dir: Path, image: str, count: int) -> list[tuple[str, str]]:
    """Neighbours among subjects that are spread over the cohort."""
    pattern = image.replace("{subject}", "*")
    names = sorted(p.relative_to(dataset_dir).parts[0] for p in dataset_dir.glob(pattern))
    kept = names[:: max(1, len(names) // (count + 1))][: count + 1]
    return list(itertools.pairwise(kept))


def read_pairs(
    given: argparse.Namespace,
) -> Iterator[tuple[ReadImage, ReadImage, Labels, Labels]]:
    """Images and labels of each pair, fixed and moving."""
    for couple in chosen_pairs(given.dataset_dir, given.image, given.count):
        paths = [given.dataset_dir / given.image.replace("{subject}", one) for one in couple]
        fixed, moving = (ReadImage(path, given.log_offset, given.background) for path in paths)
        maps = [
            read_volume(given.dataset_dir / given.labels.replace("{subject}", one))
            for one in couple
        ]
        yield fixed, moving, (maps[0][0][0], maps[0][1]), (maps[1][0][0], maps[1][1])


def propagated(
    fixed: WorldImage, labels: Labels, matrix: torch.Tensor, field: StartField | None = None
) -> np.ndarray:
    """Labels of the moving image on the fixed grid, by the nearest voxel."""
    source = torch.from_numpy(labels[0].astype(np.float32))[None, None]
    return resample_by_matrix(
        source, labels[1].affine, matrix[None], fixed.affine, fixed.shape, mode="nearest",
        displacement=None if field is None else field.forward,
    )[0, 0].numpy()  # fmt: skip


def affine(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method of affine registration."""
    ways = chosen({"unregistered": unregistered, **AFFINE}, given.ways)
    scores: dict[str, list[tuple[float, float]]] = {}
    for fixed, moving, wanted, labels in read_pairs(given):
        for name, way in ways.items():
            begun = time.process_time()
            matrix = way(fixed.image, moving.image)
            spent = time.process_time() - begun
            dice = label_dice(wanted[0], propagated(fixed.image, labels, matrix))
            scores.setdefault(name, []).append((dice, spent))
    rows = []
    for name, values in scores.items():
        dice, spent = np.array(values).T
        rows.append(
            {"method": name, "pairs": len(values), "label Dice": float(dice.mean()),
             "least": float(dice.min()), "CPU-seconds a pair": float(spent.mean())}
        )  # fmt: skip
    return rows


def elastic_ways(levels: Sequence[int]) -> dict[str, Elastic]:
    """The three methods, all from the identity."""
    network = NetworkField(pair_network())
    optimise = ElasticRefinement(levels)

    def by_optimisation(fixed: WorldImage, moving: WorldImage) -> StartField:
        result = optimise(fixed, moving)
        return StartField(result.displacement, result.inverse)

    def by_both(fixed: WorldImage, moving: WorldImage) -> StartField:
        start, estimate = network(fixed, moving)
        shown = moving
        if estimate.matched:
            still = torch.eye(4, dtype=torch.float64)[None]
            moved, covered = moved_by(still, fixed, moving, start.forward)
            match = ContrastMatch.between(moved, fixed.values, covered)
            shown = WorldImage(match(moving.values), moving.affine, moving.inside)
        result = optimise(fixed, shown, None, start)
        return StartField(result.displacement, result.inverse)

    return {
        "unregistered": lambda _f, _m: None,
        "optimisation": by_optimisation,
        "network": lambda fixed, moving: network(fixed, moving)[0],
        "network, then optimisation": by_both,
    }


def inverted(image: WorldImage) -> WorldImage:
    """The image subtracted from its maximum, background included."""
    return WorldImage(image.values.amax() - image.values, image.affine, image.inside)


def like_anisotropy(image: WorldImage) -> WorldImage:
    """A T1 image in a contrast like that of fractional anisotropy.

    Only what is brighter than most of the tissue (white matter) stays bright. Grey matter and
    fluid are equally dark, so that this can't be undone, and noise of 3 % is added.
    """
    values = image.values
    tissue = values[values > 0.05 * values.amax()]
    low, high = (float(torch.quantile(tissue[:1_000_000], q)) for q in (0.5, 0.98))
    bright = ((values - low) / (high - low)).clamp(0, 1)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    return WorldImage((bright + 0.03 * noise).clamp_min(0), image.affine, image.inside)


CONTRASTS: dict[str, Callable[[WorldImage], WorldImage]] = {
    "own": lambda image: image,
    "inverted": inverted,
    "like anisotropy": like_anisotropy,
}


def elastic(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contrast and method of elastic registration."""
    still = torch.eye(4, dtype=torch.float64)
    ways = chosen(elastic_ways(given.levels), given.ways)
    scores: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for fixed, moving, wanted, labels in read_pairs(given):
        for contrast in given.contrasts:
            shown = CONTRASTS[contrast](moving.image)
            for name, way in ways.items():
                begun = time.process_time()
                field = way(fixed.image, shown)
                spent = time.process_time() - begun
                dice = label_dice(wanted[0], propagated(fixed.image, labels, still, field))
                least = math.nan
                if field is not None:
                    least = jacobian_summary(field.forward[0])["corner_min"]
                scores.setdefault((contrast, name), []).append((dice, spent, least))
    rows = []
    for (contrast, name), values in scores.items():
        dice, spent, least = np.array(values).T
        rows.append(
            {"contrast of the moving image": contrast, "method": name, "pairs": len(values),
             "label Dice": float(dice.mean()), "least": float(dice.min()),
             "CPU-seconds a pair": float(spent.mean()), "least determinant": float(least.min()),
             "pairs that fold": int((least <= 0).sum())}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("capture", "affine", "elastic"))
    parser.add_argument("folder", type=Path, help="destination of the figures")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--image", default="{subject}/t2_native.nii.gz")
    parser.add_argument("--labels", default="{subject}/label_native.nii.gz")
    parser.add_argument("--count", type=int, default=5, help="most pairs")
    parser.add_argument("--repeats", type=int, default=2, help="transforms of an image (capture)")
    parser.add_argument("--background", choices=("zero", "unknown"), default="zero")
    parser.add_argument("--log_offset", type=float, default=None, help="for densities")
    parser.add_argument("--levels", type=int, nargs="+", default=[4, 2], help="of optimisation")
    parser.add_argument(
        "--contrasts", choices=tuple(CONTRASTS), nargs="+", default=list(CONTRASTS),
        help="of the moving image (elastic)",
    )  # fmt: skip
    parser.add_argument("--ways", nargs="+", default=None, help="names of methods; default: all")
    given = parser.parse_args()
    if given.part == "capture":
        read = [pair[0] for pair in read_pairs(given)]
        rows = capture(read, given.repeats, given.ways)
    else:
        rows = {"affine": affine, "elastic": elastic}[given.part](given)
    given.folder.mkdir(parents=True, exist_ok=True)
    name = f"shipped_{given.part}"
    (given.folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.folder / f"{name}.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
