"""Draws the pictures of docs/label_transfer.md, from the synthetic atlas.

python -m bundle.bench.transport_picture docs/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.bench.transport import vectors
from bundle.bench.transport_phantom import COURSE, WALK, synthetic_fibres
from scripts.settings.label_transfer import LabelTransferConfig
from scripts.transport.labelling import label_fibres
from scripts.transport.picture import draw_classes


def draw(folder: Path, count: int = 4000) -> None:
    """Write ``labelled_fibres.png`` and ``outlier_masses.png``.

    Args:
        folder: destination.
        count: fibres of atlas and subject.
    """
    settings = LabelTransferConfig()
    subject, truth, atlas, classes = synthetic_fibres(count)
    labelling = label_fibres(
        vectors(subject, settings), vectors(atlas, settings), classes, settings
    )
    folder.mkdir(parents=True, exist_ok=True)
    right = float((labelling.classes == truth)[truth >= 0].mean())
    names = tuple(str(c) for c in range(int(classes.max()) + 1))
    draw_classes(
        folder / "labelled_fibres.png",
        subject,
        labelling.classes,
        names,
        f"synthetic subject, {count:,} fibres: {right:.1%} of the inliers labelled right",
    )
    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    parts = {"inliers": truth >= 0, "courses": truth == COURSE, "random walks": truth == WALK}
    bins = np.linspace(0, 1, 51).tolist()
    for name, members in parts.items():
        share = np.full(members.sum(), 1 / members.sum())
        axis.hist(labelling.largest[members], bins, weights=share, alpha=0.6, label=name)
    axis.axvline(settings.outlier_threshold, color="black", linewidth=1)
    axis.set(xlabel="largest class mass of a fibre", ylabel="share of its kind")
    axis.legend()
    figure.savefig(folder / "outlier_masses.png", dpi=100)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the PNGs go")
    draw(parser.parse_args().folder)


if __name__ == "__main__":
    main()
