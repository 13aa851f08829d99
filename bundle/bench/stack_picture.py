"""Draws the pictures of docs/stack.md.

python -m bundle demo --stack
python -m bundle register-stack --output_dir <folder>
python -m bundle.bench.stack_picture demo <folder> docs/pictures/stack_demo.png
python -m bundle.bench.stack_picture banana docs/pictures/stack_banana.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from bundle.bench.stack_measures import Chain, deviations, images_of
from scripts.phantom.serial_sections import SerialSections
from scripts.stack.cropping import CropBox
from scripts.stack.placement import follow
from scripts.stack.planar import PlanarModel
from scripts.stack.resampling import resample_section
from scripts.stack.transforms import read_transforms

BEND = 40.0
THICK = 6  # pixels that a section is drawn thick


def demo(source: Path, output: Path, target: Path) -> None:
    """Cuts across the demo stack before and after, and three of its sections."""
    from matplotlib.figure import Figure

    known = read_transforms(output / "registered_stack" / "transforms.json")
    before = np.asarray(zarr.open_array(str(source / "0"), mode="r"))
    after = np.asarray(
        zarr.open_array(str(output / "registered_stack/registered.zarr/0"), mode="r")
    )
    crop = known.crop
    before = before[:, crop.top : crop.bottom, crop.left : crop.right]
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(1, 1.1, 0.8))
    middle = before.shape[1] // 2, before.shape[2] // 2
    for row, (name, stack) in enumerate((("unregistered", before), ("registered", after))):
        for column, (title, picture) in enumerate(
            (
                ("section 1", stack[1]),
                (f"middle row of all sections, {name}", np.repeat(stack[:, middle[0]], THICK, 0)),
                ("middle column", np.repeat(stack[:, :, middle[1]], THICK, 0)),
            )
        ):
            axis = axes[row, column]
            axis.imshow(picture, cmap="gray", vmin=40, vmax=255)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        for section in known.sections:
            if section.status in ("damaged", "held"):
                axes[row, 1].annotate(
                    section.status, (stack.shape[2] + 2, THICK * (section.index + 0.5)),
                    fontsize=7, va="center", annotation_clip=False,
                )  # fmt: skip
    figure.savefig(target, dpi=90)


def banana(target: Path) -> None:
    """A bent organ: the truth, the chain of pairs, and two placements."""
    from matplotlib.figure import Figure

    organ: dict[str, Any] = {"count": 40, "shape": (192, 192), "seed": 11, "angle": 1.0}
    sections = SerialSections(**organ, shift=2.0, bend=BEND)
    chain, truth = Chain(images_of(sections)), sections.composed
    chained = np.stack([chain.plane.physical_matrix(one) for one in chain.ours()])
    known = [chain.plane.physical_matrix(one) for one in truth]
    model = PlanarModel("rigid")
    every = {z: known[z] for z in range(0, sections.count, 8)}
    still = {z: np.eye(3) for z in range(sections.count)}
    shown = {
        "true": truth,
        "placement: none": chained,
        "placement: scanner": follow(chained, still, model, chain.plane, 8.0),
        "a file with every 8th section": follow(chained, every, model, chain.plane, 8.0),
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axis, (title, matrices) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        if title not in ("true",):
            matrices = np.stack([chain.plane.pixel_matrix(one) for one in matrices])
        line = CropBox(96, 97, 0, 192)
        cut = np.concatenate(
            [
                resample_section(image, matrix, line, "linear", (0.9,))
                for image, matrix in zip(chain.images, matrices, strict=True)
            ]
        )
        off = float(np.sqrt((deviations(matrices, truth, chain.plane) ** 2).mean()))
        axis.imshow(np.repeat(cut, THICK, 0), cmap="gray", vmin=0.15, vmax=1)
        axis.set_title(title if title == "true" else f"{title}\noff by {off:.1f} px", fontsize=9)
        axis.axis("off")
    figure.savefig(target, dpi=90)


def main() -> None:
    """Draw one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("demo")
    one.add_argument("output", type=Path, help="where the demo stack was registered to")
    one.add_argument("--source", type=Path, default=Path("data/demo_stack/sections.zarr"))
    one.add_argument("target", type=Path)
    parts.add_parser("banana").add_argument("target", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "demo":
        demo(options.source, options.output, options.target)
    else:
        banana(options.target)


if __name__ == "__main__":
    main()
