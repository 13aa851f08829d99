"""One self-contained HTML page that shows how a stack was registered."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.errors import shown
from scripts.stack.output import Cuts
from scripts.stack.transforms import StackTransforms

__all__ = ["cut_pictures", "quality_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222;
       padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc }
.row { display: flex; gap: 6px; margin-bottom: 6px }
figure { margin: 0; flex: 1 1 0; min-width: 0; font-size: 13px }
figcaption { padding: .2rem 0; color: #444 }
img { width: 100%; display: block } table { border-collapse: collapse }
td, th { padding: .15rem .9rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums }
.text { text-align: left }
tr.damaged td { color: #b00020; font-weight: bold } tr.held td, tr.skipped td { color: #777 }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 12px }
.note { color: #666 } .advice { background: #fff4d6; padding: .6rem 1rem }
"""
_FAR = 0.02  # of the shorter side, as the log has it
_WIDEST = 1200  # pixels of a picture


def quality_page(
    transforms: StackTransforms, cuts: Sequence[Cuts], settings: Mapping[str, Any]
) -> str:
    """The page as text; pictures are inside it, nothing is loaded from anywhere.

    Args:
        transforms: of the stack.
        cuts: of each section.
        settings: of the run.
    """
    count = len(transforms.sections)
    rows, columns = transforms.crop.shape
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Registered stack</title><style>{_STYLE}</style></head><body>",
        "<h1>Registered stack</h1>",
        f"<p class='note'>{count} sections of {transforms.shape[0]} x {transforms.shape[1]} "
        f"pixels, cropped to {rows} x {columns}; spacing "
        f"{' x '.join(f'{step:g}' for step in transforms.spacing)} {_text(transforms.unit)}; "
        f"{_text(transforms.family)}</p>",
        "<h2>Cuts across the stack</h2>",
        "<p class='note'>The middle row and the middle column of every section, the first section "
        "on top. Registered anatomy runs through without steps.</p>",
    ]
    pictures = cut_pictures(cuts, transforms.spacing)
    for which in ("row", "column"):
        figures = "".join(
            f"<figure><figcaption>middle {which}, {when}</figcaption>"
            f"{_picture(f'middle {which} {when}', pictures[which, when])}</figure>"
            for when in ("before", "after")
        )
        parts.append(f"<div class='row'>{figures}</div>")
    parts += [
        "<h2>Wander</h2>", _wander(transforms, settings),
        "<h2>Pairs</h2>",
        "<p class='note'>Correlation of each section with the one before, and how far its pairs "
        "disagree with the solution (r.m.s., pixels).</p>",
        _image("correlation and residual by section", _curves(transforms)),
        "<h2>Sections</h2>", _table(transforms),
        "<h2>Settings</h2>",
        f"<pre>{_text(json.dumps(dict(settings), indent=1))}</pre>",
    ]  # fmt: skip
    return "\n".join([*parts, "</body></html>\n"])


def cut_pictures(
    cuts: Sequence[Cuts], spacing: Sequence[float]
) -> dict[tuple[str, str], np.ndarray]:
    """The cuts as pictures ``(height, width)``, 0..1 on one scale, sections at their thickness.

    Args:
        cuts: of each section.
        spacing: z, y, x.
    """
    stacks = {
        ("row", "before"): np.stack([cut.before[0] for cut in cuts]),
        ("row", "after"): np.stack([cut.after[0] for cut in cuts]),
        ("column", "before"): np.stack([cut.before[1] for cut in cuts]),
        ("column", "after"): np.stack([cut.after[1] for cut in cuts]),
    }
    low, high = np.percentile(np.concatenate([one.ravel() for one in stacks.values()]), (0.5, 99.5))
    steps = {"row": spacing[2], "column": spacing[1]}
    result = {}
    for (which, when), lines in stacks.items():
        lines = ((lines - low) / max(high - low, 1e-12)).clip(0, 1)
        thin = -(-lines.shape[1] // _WIDEST)
        lines = lines[:, ::thin]
        thick = int(np.clip(round(spacing[0] / (steps[which] * thin)), 1, 40))
        # A thin stack stays visible.
        thick = max(thick, -(-80 // len(lines)))
        result[which, when] = np.repeat(lines, thick, axis=0)
    return result


def _text(value: Any) -> str:
    return html.escape(shown(value, keep="\n"))


def _wander(transforms: StackTransforms, settings: Mapping[str, Any]) -> str:
    wander = transforms.wander
    text = (
        f"<p>The slow part of the chain of pairs is {wander['rms']:.1f} pixels (r.m.s.) from the "
        f"unregistered sections, {wander['largest']:.1f} at most (section {wander['section']}).</p>"
    )
    if settings.get("placement") != "none":
        return f"{text}<p>The slow part follows: {_text(settings.get('placement'))}.</p>"
    if wander["rms"] <= _FAR * min(transforms.shape):
        return text
    return (
        f"{text}<p class='advice'>Neighbours agree best where curved anatomy is straightened. If "
        "yours is curved, repeat the run with <code>placement</code>: a file of known placements "
        "(an earlier transforms.json, QuickNII's or DeepSlice's JSON), or <code>scanner</code> if "
        "the sections were laid with care.</p>"
    )


def _table(transforms: StackTransforms) -> str:
    rows = []
    for one in transforms.sections:
        steps = " ".join(str(n) for n in one.steps)
        rows.append(
            f"<tr class='{_text(one.status)}'><td>{one.index}</td>"
            f"<td class='text'>{_text(one.name)}</td><td class='text'>{_text(one.status)}</td>"
            f"<td>{_number(one.correlation_before, 3)}</td><td>{_number(one.correlation, 3)}</td>"
            f"<td>{_number(one.loss, 4)}</td><td>{_number(one.residual, 2)}</td>"
            f"<td class='text'>{steps}</td></tr>"
        )
    return (
        "<table id='sections'><tr><th>section</th><th class='text'>name</th>"
        "<th class='text'>status</th><th>correlation before</th><th>after</th><th>loss</th>"
        "<th>residual (pixels)</th><th class='text'>steps by level</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def _encoded(alt: str, data: bytes) -> str:
    return f"<img alt='{_text(alt)}' src='data:image/png;base64,{base64.b64encode(data).decode()}'>"


def _picture(alt: str, values: np.ndarray) -> str:
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, values, cmap="gray", vmin=0, vmax=1, format="png")
    return _encoded(alt, buffer.getvalue())


def _image(alt: str, figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return _encoded(alt, buffer.getvalue())


def _curves(transforms: StackTransforms) -> Any:
    from matplotlib.figure import Figure

    def series(name: str) -> list[float]:
        values = (getattr(one, name) for one in transforms.sections)
        return [np.nan if value is None else value for value in values]

    places = range(len(transforms.sections))
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(places, series("correlation_before"), ".-", color="#bbb", label="before")
    left.plot(places, series("correlation"), ".-", color="#246", label="after")
    left.set_title("correlation with the section before", fontsize=11)
    left.legend(fontsize=9)
    right.plot(places, series("residual"), ".-", color="#246")
    right.set_title("residual (pixels)", fontsize=11)
    for axis in (left, right):
        axis.set_xlabel("section", fontsize=10)
        axis.tick_params(labelsize=9)
        axis.grid(alpha=0.3)
    return figure
