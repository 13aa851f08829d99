"""Draws what networks of fields do to a held-out pair, and how far off each is.

    python -m bundle.bench.supervised_picture picture.png --pairs test.h5 --index 3 \\
        --networks models/fields_global.pt models/fields_local.pt models/fields_merged.pt

Columns: no field, each network, the true field. Rows: the moving image as registered, its
difference from the reference, and the length of the field's error in pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.bench.supervised import by_network, network_of
from scripts.metrics.fields import tissue_mask
from scripts.supervised.layers import warp_image
from scripts.supervised.loading import KnownPairs
from scripts.supervised.pair_store import PairStore


def draw(target: Path, store: Path, index: int, networks: list[Path]) -> None:
    """Write the picture.

    Args:
        target: its file.
        store: of pairs.
        index: the pair.
        networks: saved networks.
    """
    item = KnownPairs(PairStore(store), [index], inverse=True)[0]
    true = item["field"].numpy()
    fields = {"moving, no field": np.zeros_like(true)}
    for path in networks:
        network = network_of(path)
        fields[network.name] = by_network(network, item)[0]
    fields["true field"] = true
    reference = item["reference"][0].numpy()
    tissue = tissue_mask(reference)
    most = float(np.sqrt((true**2).sum(0)).max())
    figure = Figure(figsize=(2.5 * (len(fields) + 1), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(fields) + 1)
    for row in axes:
        for one in row:
            one.set_axis_off()
    axes[0, 0].imshow(reference, cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("reference", fontsize=9)
    shown = None
    for column, (name, field) in enumerate(fields.items(), start=1):
        moved = warp_image(item["moving"][None], torch.from_numpy(field)[None])[0, 0].numpy()
        error = np.sqrt(((field - true) ** 2).sum(0))
        axes[0, column].imshow(moved, cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].imshow(moved - reference, cmap="RdBu_r", vmin=-0.6, vmax=0.6)
        shown = axes[2, column].imshow(error, cmap="magma", vmin=0, vmax=most)
        axes[2, column].set_title(f"{error[tissue].mean():.2f} px in tissue", fontsize=9)
    assert shown is not None
    figure.colorbar(shown, ax=list(axes[2, 1:]), label="field error, px", shrink=0.9)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Draw one pair."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--networks", type=Path, nargs="+", required=True)
    given = parser.parse_args()
    draw(given.target, given.pairs, given.index, given.networks)


if __name__ == "__main__":
    main()
