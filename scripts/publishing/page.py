"""Parts of the HTML pages: the frame, escaped text, static pictures."""

from __future__ import annotations

import base64
import gc
import hashlib
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.errors import shown
from scripts.spatial.projections import three_views

__all__ = ["deformed_grid", "document", "figure", "image", "light", "table", "text", "views"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222;
       padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc }
.row { display: flex; gap: 6px; margin-bottom: 6px }
figure { margin: 0; flex: 1 1 0; min-width: 0; background: #000; color: #ddd; font-size: 13px }
figure.light { background: #fff; color: #222 } figcaption { padding: .2rem .5rem }
img { width: 100%; display: block } table { border-collapse: collapse }
td, th { padding: .15rem .9rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums }
td:first-child, th:first-child, .text td, .text th { text-align: left }
tr.bad td { color: #b00020; font-weight: bold }
.long { max-height: 32rem; overflow: auto; border-bottom: 1px solid #ccc }
.long th { position: sticky; top: 0; background: #fff }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 12px }
.note { color: #666 }
"""


def document(title: str, parts: Sequence[str], script: str = "", style: str = "") -> str:
    """A page that contains everything and loads nothing.

    The page's policy forbids every request and every script but the given one. Text from a file
    that looks like a script does nothing, even where it would not have been escaped.

    Args:
        title: of the window.
        parts: HTML of the body; all text in it is escaped.
        script: JavaScript, runs when the body is complete.
        style: CSS after the common style.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src {allowed}"
    )
    lines = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body>",
        *parts,
    ]
    if script:
        lines.append(f"<script>{script}</script>")
    return "\n".join([*lines, "</body></html>\n"])


def text(value: Any) -> str:
    """A value as text of the page: markup and characters that a reader can't see are escaped."""
    return html.escape(shown(value, keep="\n"))


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    """A table of escaped cells.

    Args:
        rows: of cells.
        head: names of the columns; empty: no such row.
        kind: class of the table, as ``text`` for cells that are words.
    """
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = [f"<tr>{top}</tr>"] if top else []
    lines += [f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table class='{kind}'>{''.join(lines)}</table>"


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def figure(width: float, height: float, layout: str | None = "constrained") -> Any:
    """An empty matplotlib figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


_DRAWN = itertools.count(1)
_COLLECTED_EVERY = 64  # figures; to collect takes a tenth of a second


def image(alt: str, drawn: Any) -> str:
    """A matplotlib figure as a picture inside the page; the figure is emptied."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=80)
    # A figure's parts refer to each other. A job that draws some for every subject would keep many
    # until the interpreter looks for such circles among its oldest objects.
    drawn.clear()
    if next(_DRAWN) % _COLLECTED_EVERY == 0:
        gc.collect()
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{text(alt)}' src='data:image/png;base64,{data}'>"


def light(picture: str, caption: str | None = None) -> str:
    """A picture on white in a separate row."""
    below = "" if caption is None else f"<figcaption>{text(caption)}</figcaption>"
    return f"<div class='row'><figure class='light'>{below}{picture}</figure></div>"


def views(volumes: Mapping[str, np.ndarray], top: float | None, columns: int = 2) -> str:
    """Rows of captioned pictures, three maximum projections each.

    Args:
        volumes: ``(*shape)`` by title.
        top: value drawn brightest; None: each picture on its own scale.
        columns: pictures in a row.
    """
    tiles = []
    for title, volume in volumes.items():
        largest = float(volume.max())
        limit = top if top is not None else largest or 1.0
        drawn = three_views(volume)
        canvas = figure(7.2, 7.2 * drawn.shape[0] / drawn.shape[1], layout=None)
        axis = canvas.add_axes((0, 0, 1, 1))
        axis.imshow(drawn, cmap="inferno", vmin=0, vmax=limit, aspect="auto")
        axis.axis("off")
        note = "" if top is not None else f" (largest {largest:.3g})"
        tiles.append(
            f"<figure><figcaption>{text(title + note)}</figcaption>{image(title, canvas)}</figure>"
        )
    tiles += ["<figure class='light'></figure>"] * (-len(tiles) % columns)
    rows = (tiles[i : i + columns] for i in range(0, len(tiles), columns))
    return "".join(f"<div class='row'>{''.join(row)}</div>" for row in rows)


def deformed_grid(field: np.ndarray, step: int = 2) -> Any:
    """Middle slices of a field ``(d, *shape)``, voxels: every ``step``-th grid line, deformed."""
    shape = field.shape[1:]
    planes = [(0, 1)] if len(shape) == 2 else [(1, 2), (0, 2), (0, 1)]
    step = max(step, max(shape) // 40)
    drawn = figure(14, 4.6)
    for place, (a, b) in enumerate(planes, start=1):
        axis = drawn.add_subplot(1, len(planes), place)
        cut = tuple(slice(None) if i in (a, b) else n // 2 for i, n in enumerate(shape))
        x = np.arange(shape[a])[:, None] + field[(a, *cut)]
        y = np.arange(shape[b])[None, :] + field[(b, *cut)]
        axis.plot(x[::step].T, y[::step].T, color="#246", linewidth=0.7)
        axis.plot(x[:, ::step], y[:, ::step], color="#246", linewidth=0.7)
        axis.set_aspect("equal")
        axis.axis("off")
    return drawn
