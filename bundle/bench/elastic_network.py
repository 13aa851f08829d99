"""Measures an elastic network on real images that it wasn't trained on, also of other contrast.

    python -m bundle.bench.elastic_network <output> --model models/elastic_model.pt \\
        --dataset_dir <output>/aligned --image '{subject}/t2.nii.gz' \\
        --labels '{subject}/label.nii.gz'

Uses pairs of affinely aligned subjects that were NOT in the training: Dice of the moving subject's
labels on the fixed one, unregistered and through the network; with the original images, and with
the moving one's contrast inverted. Optimisation with local correlation on the same images is given
for comparison. Times are CPU-seconds. Written as JSON and as a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.bench.affine import label_dice, table
from scripts.elastic.network import (
    ElasticNetwork,
    load_elastic_network,
    on_image_grid,
    register_images,
)
from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import WorldImage
from scripts.spatial.grid import Grid
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.volumes import read_volume

Volume = tuple[np.ndarray, Grid]
Method = Callable[[Volume, Volume], torch.Tensor]


def inverted(image: np.ndarray) -> np.ndarray:
    """Invert the contrast, including the background."""
    return image.max() - image


def by_network(network: ElasticNetwork, fixed: Volume, moving: Volume) -> torch.Tensor:
    """Displacement ``(1, 3, *shape)`` in voxels of the fixed grid."""
    result, _ = register_images(network, fixed[0], fixed[1].affine, moving[0], moving[1].affine)
    return on_image_grid(result[None], network.grid, fixed[1].affine, fixed[1].shape)


def by_optimisation(fixed: Volume, moving: Volume) -> torch.Tensor:
    """The same by `ElasticRefinement` with its defaults at full resolution."""
    pair = [
        WorldImage(torch.from_numpy((one / one.max()).astype(np.float32))[None, None], grid.affine)
        for one, grid in (fixed, moving)
    ]
    return ElasticRefinement((2, 1))(pair[0], pair[1]).displacement


def measure(
    network: ElasticNetwork, dataset_dir: Path, image: str, labels: str, count: int
) -> list[dict[str, Any]]:
    """A row for each method and contrast."""
    known = set(network.description["trained_on"])
    pattern = image.replace("{subject}", "*")
    names = sorted(p.relative_to(dataset_dir).parts[0] for p in dataset_dir.glob(pattern))
    names = [name for name in names if name not in known]
    couples = list(itertools.permutations(names, 2))[:count]
    if not couples:
        raise SystemExit("fewer than two subjects that the network wasn't trained on")
    methods: dict[str, Method] = {
        "network": lambda fixed, moving: by_network(network, fixed, moving),
        "optimisation": by_optimisation,
    }
    rows = []
    for contrast in ("own", "inverted"):
        for name, method in {"unregistered": None, **methods}.items():
            scores, spent, folds = [], [], []
            for couple in couples:
                fixed, moving = (_read(dataset_dir, image, one) for one in couple)
                wanted, carried = (_read(dataset_dir, labels, one) for one in couple)
                if contrast == "inverted":
                    moving = (inverted(moving[0]), moving[1])
                begun = time.process_time()
                field = None if method is None else method(fixed, moving)
                spent.append(time.process_time() - begun)
                moved = resample_by_matrix(
                    torch.from_numpy(carried[0].astype(np.float32))[None, None],
                    carried[1].affine, torch.eye(4, dtype=torch.float64), fixed[1].affine,
                    fixed[1].shape, mode="nearest", displacement=field,
                )  # fmt: skip
                scores.append(label_dice(wanted[0], moved[0, 0].numpy()))
                if field is not None:
                    folds.append(jacobian_summary(field[0])["corner_min"])
            rows.append(
                {"contrast of the moving image": contrast, "method": name, "pairs": len(couples),
                 "label Dice": float(np.mean(scores)), "least": float(np.min(scores)),
                 "CPU-seconds a pair": float(np.mean(spent)),
                 "least determinant": float(min(folds)) if folds else float("nan")}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def _read(dataset_dir: Path, pattern: str, subject: str) -> Volume:
    values, grid = read_volume(dataset_dir / pattern.replace("{subject}", subject))
    return values[0], grid


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="destination of the figures")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--image", default="{subject}/t2.nii.gz")
    parser.add_argument("--labels", default="{subject}/label.nii.gz")
    parser.add_argument("--count", type=int, default=6, help="most pairs")
    given = parser.parse_args()
    network = load_elastic_network(given.model)
    rows = measure(network, given.dataset_dir, given.image, given.labels, given.count)
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "elastic_network.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.folder / "elastic_network.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
