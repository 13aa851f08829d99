"""A picture of labelled streamlines: three views, one colour per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts.errors import shown

__all__ = ["draw_classes"]

_MOST = 6000
_VIEWS = (("from the left", 1, 2, -1), ("from the front", 0, 2, 1), ("from above", 0, 1, 1))
_OUTLIERS = "#555555"


def draw_classes(
    path: Path, lines: np.ndarray, classes: np.ndarray, names: Sequence[str], title: str
) -> None:
    """Draw streamlines in the colours of their classes, with outliers thin and grey behind them.

    Args:
        path: the PNG.
        lines: ``(n, points, 3)``, RAS mm; at most 6,000 are drawn, evenly chosen.
        classes: ``(n,)``, -1 for outliers.
        names: of the classes; the legend shows up to 40.
        title: above the views.
    """
    drawn = np.unique(np.linspace(0, len(lines) - 1, min(_MOST, len(lines))).astype(int))
    lines, classes = lines[drawn], classes[drawn]
    order = np.argsort(classes, kind="stable")  # outliers first: classes are drawn over them
    lines, classes = lines[order], classes[order]
    # Steps of the golden ratio give consecutive classes very different colours.
    palette = [colormaps["turbo"](0.05 + 0.9 * (0.618034 * i % 1)) for i in range(len(names))]
    colours = [palette[c] if c >= 0 else _OUTLIERS for c in classes]
    widths = np.where(classes >= 0, 0.6, 0.25)

    figure = Figure(figsize=(12, 5.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    for axis, (name, across, up, sign) in zip(axes, _VIEWS, strict=True):
        plane = lines[..., [across, up]] * (sign, 1)
        axis.add_collection(LineCollection(list(plane), colors=colours, linewidths=widths))
        if len(lines):
            axis.autoscale_view()
        axis.set_title(name, color="white", fontsize=9)
        axis.set_aspect("equal")
        axis.axis("off")
    figure.suptitle(shown(title), color="white", fontsize=11, parse_math=False)
    if 0 < len(names) <= 40:
        handles = [Line2D([], [], color=colour) for colour in palette]
        legend = figure.legend(
            handles, [shown(name) for name in names], loc="outside lower center", ncols=6,
            fontsize=6, labelcolor="white", facecolor="black", edgecolor="black",
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # dollars in a name don't begin a formula
    figure.savefig(path, dpi=110)
