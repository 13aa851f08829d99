"""Draws how the registration network that ships registers images of different contrasts.

    python -m bundle.bench.contrast_picture docs/pictures/other_contrast.png \\
        --dataset_dir <folder> --background unknown

A row for each contrast of the moving image (`bundle.bench.shipped_networks.CONTRASTS`): the fixed
image, the moving image before and after the network's field, with the outlines of the fixed image's
labels. The network sees no labels. They only show, with the Dice of the propagated labels, how well
the images are aligned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from bundle.bench.affine import label_dice
from bundle.bench.shipped_networks import CONTRASTS, propagated, read_pairs
from scripts.registration.images import WorldImage
from scripts.registration.moved import moved_by
from scripts.registration.network_field import NetworkField, pair_network
from scripts.registration.start_field import StartField


def as_moved(fixed: WorldImage, moving: WorldImage, field: StartField | None) -> np.ndarray:
    """The moving image on the fixed grid, ``(X, Y, Z)``."""
    still = torch.eye(4, dtype=torch.float64)[None]
    values, _ = moved_by(still, fixed, moving, None if field is None else field.forward)
    return values[0, 0].numpy()


def draw(given: argparse.Namespace) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    torch.set_num_threads(1)
    network = NetworkField(pair_network())
    fixed, moving, wanted, labels = list(read_pairs(given))[-1]
    target = wanted[0]
    places = np.argwhere(target > 0)
    cut = int(np.bincount(places[:, given.axis]).argmax())
    contrasts = [name for name in CONTRASTS if name != "own"]
    figure = Figure(figsize=(9.0, 3.2 * len(contrasts)), layout="constrained")
    axes = figure.subplots(len(contrasts), 3, squeeze=False)
    still = torch.eye(4, dtype=torch.float64)
    for row, contrast in zip(axes, contrasts, strict=True):
        shown = CONTRASTS[contrast](moving.image)
        field, _ = network(fixed.image, shown)
        pictures = [("fixed", fixed.image.values[0, 0].numpy())]
        for name, found in (("moving, unregistered", None), ("moving, registered", field)):
            dice = label_dice(target, propagated(fixed.image, labels, still, found))
            title = f"{name}\nlabel Dice {dice:.2f}"
            pictures.append((title, as_moved(fixed.image, shown, found)))
        for axis, (title, values) in zip(row, pictures, strict=True):
            plane = np.take(values, cut, given.axis).T
            axis.imshow(plane, cmap="gray", origin="lower", vmax=np.quantile(plane, 0.995))
            outline = np.take(target, cut, given.axis).T
            for label in np.unique(outline[outline > 0]):
                axis.contour(outline == label, [0.5], colors="C1", linewidths=1.0)
            axis.set_title(title, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"moving image: {contrast}", fontsize=10)
    figure.savefig(given.target, dpi=90)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--image", default="{subject}/t1.nii.gz")
    parser.add_argument("--labels", default="{subject}/label.nii.gz")
    parser.add_argument("--count", type=int, default=3, help="pairs, of which the last is drawn")
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), default=1, help="of the cut")
    parser.add_argument("--background", choices=("zero", "unknown"), default="zero")
    parser.add_argument("--log_offset", type=float, default=None, help="for densities")
    draw(parser.parse_args())


if __name__ == "__main__":
    main()
