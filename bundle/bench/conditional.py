"""Compares a conditional template with the true anatomy at several ages of a demo cohort.

    python -m bundle.bench.conditional <dataset_dir> <ckpt_dir> [--unconditional <ckpt_dir>]
        [--pictures <folder>]

The dataset is a demo cohort with an age_effect, whose truth contains the anatomy at ages of -1.5,
-0.75, 0.75 and 1.5 standard deviations. The templates come from ``model.pt``, at those ages. The
unconditional one comes from a second training on the same cohort, or else is the conditional
template at the mean age, used for all ages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_coding, published_geometry, published_network
from scripts.metrics import log_density_correlation, pearson
from scripts.phantom import Truth, load_truth
from scripts.spatial.projections import three_views

Volume = NDArray[np.float32]


def template_at(network: AtlasNetwork, values: dict[str, float | str] | None) -> Volume:
    """A template's density on the whole grid; None: at the cohort's mean."""
    coding = published_coding(network)
    point = None
    if coding is not None and values is not None:
        point = torch.as_tensor(coding.code(values))[None]
    with torch.no_grad():
        density = network.template_density(point)[0, 0].numpy()
    grid, crop = published_geometry(network)
    return crop.paste(density[None], grid.shape)[0]


def score(truth: Truth, network: AtlasNetwork, plain: Volume, offset: float) -> dict[str, Any]:
    """Distance of each template from the truth at each age, and accuracy of its change with age.

    Args:
        truth: of the demo cohort.
        network: with a template conditional on age.
        plain: one template for all ages, whole grid.
        offset: of the log densities.

    Returns:
        ``ages``: for each age the correlations of log density with the truth (where either is above
        0); ``change``: for the difference of log densities between the oldest and the youngest, its
        correlation with the true difference and the slope of its regression on that (1: correct
        size).
    """
    estimate = {z: template_at(network, {"age": truth.age(z)}) for z in truth.aged}
    ages = [
        {
            "z": z,
            "age": round(truth.age(z), 1),
            "conditional": log_density_correlation(estimate[z], central, offset),
            "unconditional": log_density_correlation(plain, central, offset),
        }
        for z, central in truth.aged.items()
    ]
    low, high = min(truth.aged), max(truth.aged)
    change = log_of(estimate[high], offset) - log_of(estimate[low], offset)
    true = log_of(truth.aged[high], offset) - log_of(truth.aged[low], offset)
    anywhere = (truth.aged[high] + truth.aged[low] + estimate[high] + estimate[low]) > 0
    a, b = true[anywhere], change[anywhere]
    return {
        "ages": ages,
        "change": {
            "correlation": pearson(a, b),
            "slope": float((a @ b) / (a @ a)),
        },
    }


def log_of(density: Volume, offset: float) -> NDArray[np.float64]:
    """``log1p(x / offset)``."""
    return np.log1p(density.astype(np.float64) / offset)


def draw(truth: Truth, network: AtlasNetwork, plain: Volume, folder: Path) -> None:
    """``conditional_ages.png``: true, conditional and unconditional anatomy, youngest and oldest.

    ``conditional_change.png``: the difference between the two, in truth and template.
    """
    from matplotlib.figure import Figure

    offset = network.log_offset
    low, high = min(truth.aged), max(truth.aged)
    estimate = {z: template_at(network, {"age": truth.age(z)}) for z in (low, high)}
    rows = {}
    for z in (low, high):
        years = f"at {truth.age(z):.0f} years"
        rows[f"true anatomy {years}"] = truth.aged[z]
        rows[f"conditional template {years}"] = estimate[z]
    rows["one template for all ages (the mean age's, or the unconditional)"] = plain
    top = float(log_of(truth.central[0], offset).max())
    figure = Figure(figsize=(8, 13.5), facecolor="black", layout="constrained")
    for place, (title, volume) in enumerate(rows.items(), start=1):
        axis = figure.add_subplot(len(rows), 1, place)
        views = three_views(log_of(volume, offset).astype(np.float32))
        axis.imshow(views, cmap="inferno", vmin=0, vmax=top)
        axis.set_title(title, color="white", fontsize=10, loc="left")
        axis.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "conditional_ages.png", dpi=55)

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    pairs = {"true change": truth.aged, "change of the conditional template": estimate}
    for place, (title, at) in enumerate(pairs.items(), start=1):
        change = log_of(at[high], offset) - log_of(at[low], offset)
        axis = figure.add_subplot(len(pairs), 1, place)
        # One slice per axis, through the middle: a maximum would hide decreases.
        middle = [change.take(size // 2, axis=i) for i, size in enumerate(change.shape)]
        tall = max(part.shape[1] for part in middle)
        padded = [np.pad(part, ((0, 2), (0, tall - part.shape[1]))) for part in middle]
        shown = axis.imshow(
            np.concatenate(padded).T, origin="lower", cmap="RdBu_r", vmin=-top, vmax=top
        )
        axis.set_title(f"{title}, log density, oldest less youngest", fontsize=10, loc="left")
        axis.axis("off")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    figure.savefig(folder / "conditional_change.png", dpi=80)


def main() -> None:
    """Print the figures as JSON, and draw them if requested."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir", type=Path, help="a demo cohort with an age_effect")
    parser.add_argument("ckpt_dir", type=Path, help="contains model.pt of a conditional training")
    parser.add_argument("--unconditional", type=Path, help="ckpt_dir of a second training")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    truth = load_truth(options.dataset_dir)
    network = published_network(options.ckpt_dir / "model.pt")
    other = network
    if options.unconditional is not None:
        other = published_network(options.unconditional / "model.pt")
    plain = template_at(other, None)
    print(json.dumps(score(truth, network, plain, network.log_offset), indent=1))
    if options.pictures is not None:
        draw(truth, network, plain, options.pictures)


if __name__ == "__main__":
    main()
