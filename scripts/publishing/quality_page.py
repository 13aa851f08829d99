"""One self-contained HTML page that shows the published atlas."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.errors import shown
from scripts.spatial.projections import three_views

__all__ = ["SubjectQuality", "quality_page"]

SubjectQuality = dict[str, Any]
"""``subject``, ``loss`` (or None), ``overlap``, ``correlation``, ``smallest_jacobian``,
``displacement`` of one subject."""

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
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 12px }
.note { color: #666 }
"""


def quality_page(
    about: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    subjects: Sequence[SubjectQuality],
    grids: Mapping[str, np.ndarray],
    losses: Sequence[Mapping[str, float]],
) -> str:
    """The page as text; it contains its pictures and loads nothing.

    Args:
        about: content of ``atlas.json``.
        pictures: titled log densities ``(*shape)`` with a common scale: template, average,
        subjects.
        maps: the published maps ``(*shape)`` by name, each with its own scale.
        subjects: one row each; the worst come first.
        grids: titled inverse displacements ``(d, *shape)`` to draw as deformed grids.
        losses: mean terms of each epoch.
    """
    cohort = about["cohort"]
    top = max((float(p.max()) for p in pictures.values()), default=1.0) or 1.0
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Learned tract-density atlas</title><style>{_STYLE}</style></head><body>",
        "<h1>Learned tract-density atlas</h1>",
        f"<p class='note'>{about['n_subjects']} subjects, {_text(about['created'])}, "
        f"{_text(about['training_space'])}, normalisation {_text(about['normalisation'])}</p>",
        _facts(about),
        "<h2>Template, plain average, subjects</h2>"
        "<p class='note'>Maximum projections of log density on one scale.</p>",
        _views(pictures, top, _PICTURES_A_ROW),
        "<h2>Maps</h2>",
        "<p class='note'>Maximum projections, each map on its own scale from 0.</p>",
        _views(maps, None, _MAPS_A_ROW),
    ]
    if losses:
        parts += ["<h2>Losses</h2>", _light(_image("losses by epoch", _curves(losses)))]
    parts += ["<h2>Subjects, worst first</h2>", _subject_table(subjects)]
    if grids:
        parts += [
            "<h2>Fields</h2><p class='note'>Middle slices of the template's grid, each point "
            "drawn at its position in the subject: across the first, second and third axis.</p>",
            *(
                _light(_image(f"deformed grid of {title}", _deformed(field)), title)
                for title, field in grids.items()
            ),
        ]
    parts += ["<h2>Left out</h2>", _left_out(cohort)]
    for title in ("settings", "versions"):
        parts.append(f"<h2>{title.capitalize()}</h2>")
        parts.append(f"<pre>{_text(json.dumps(about[title], indent=1))}</pre>")
    return "\n".join([*parts, "</body></html>\n"])


def _text(value: Any) -> str:
    return html.escape(shown(value, keep="\n"))


def _facts(about: Mapping[str, Any]) -> str:
    fields = about["fields"]
    rows = {
        "smallest Jacobian determinant": f"{fields['smallest_jacobian']:.3g}",
        "fields that fold": f"{fields['folded']}",
        "mean displacement of the cohort (r.m.s., voxels)": (
            f"{fields['mean_displacement_rms_voxels']:.3f}"
        ),
        "displacement of a subject (r.m.s., voxels)": f"{fields['displacement_rms_voxels']:.2f}",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _left_out(cohort: Mapping[str, Any]) -> str:
    """The rejected subjects with reasons, and the folders without a map."""
    found = [(one["subject"], one["reason"]) for one in cohort["rejected"]]
    found += [(name, "folder without a map") for name in cohort.get("without_map", ())]
    if not found:
        return "<p>No subject was left out.</p>"
    rows = "".join(f"<tr><td>{_text(a)}</td><td>{_text(b)}</td></tr>" for a, b in found)
    return f"<table class='text'><tr><th>subject</th><th>reason</th></tr>{rows}</table>"


def _subject_table(subjects: Sequence[SubjectQuality]) -> str:
    """Worst first: subjects whose fields fold, then by how well the template fits."""
    rows = []
    for one in sorted(subjects, key=lambda s: (s["smallest_jacobian"] > 0, s["correlation"])):
        mark = " class='bad'" if one["smallest_jacobian"] <= 0 else ""
        loss = "" if one["loss"] is None else f"{one['loss']:.4f}"
        rows.append(
            f"<tr{mark}><td>{_text(one['subject'])}</td><td>{loss}</td>"
            f"<td>{one['overlap']:.3f}</td><td>{one['correlation']:.3f}</td>"
            f"<td>{one['smallest_jacobian']:.3g}</td><td>{one['displacement']:.2f}</td></tr>"
        )
    return (
        "<table id='subjects'><tr><th>subject</th><th>loss</th><th>overlap (Dice)</th>"
        "<th>correlation</th><th>smallest det J</th><th>displacement (voxels)</th></tr>"
        + "".join(rows)
        + "</table><p class='note'>Loss, and overlap of presence: the template in the subject's "
        "space. Correlation of log densities: the subject in template space, where either is "
        "above 0. Displacement: r.m.s. over the grid.</p>"
    )


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------

_PICTURES_A_ROW = 2
_MAPS_A_ROW = 2


def _figure(width: float, height: float, layout: str | None = "constrained") -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def _image(alt: str, figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{_text(alt)}' src='data:image/png;base64,{data}'>"


def _light(image: str, caption: str | None = None) -> str:
    told = "" if caption is None else f"<figcaption>{_text(caption)}</figcaption>"
    return f"<div class='row'><figure class='light'>{told}{image}</figure></div>"


def _views(volumes: Mapping[str, np.ndarray], top: float | None, columns: int) -> str:
    """Rows of captioned pictures, three views each."""
    tiles = []
    for title, volume in volumes.items():
        largest = float(volume.max())
        limit = top if top is not None else largest or 1.0
        views = three_views(volume)
        figure = _figure(7.2, 7.2 * views.shape[0] / views.shape[1], layout=None)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(views, cmap="inferno", vmin=0, vmax=limit, aspect="auto")
        axis.axis("off")
        note = "" if top is not None else f" (largest {largest:.3g})"
        tiles.append(
            f"<figure><figcaption>{_text(title + note)}</figcaption>{_image(title, figure)}"
            "</figure>"
        )
    blank = "<figure class='light'></figure>"
    tiles += [blank] * (-len(tiles) % columns)
    rows = (tiles[i : i + columns] for i in range(0, len(tiles), columns))
    return "".join(f"<div class='row'>{''.join(row)}</div>" for row in rows)


def _curves(losses: Sequence[Mapping[str, float]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    names = list(losses[0])
    columns = 3
    rows = -(-len(names) // columns)
    figure = _figure(14, 2.6 * rows)
    for place, name in enumerate(names, start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.plot(
            range(1, len(losses) + 1),
            [epoch[name] for epoch in losses],
            marker="." if len(losses) < 30 else None,
        )
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("epoch", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.tick_params(labelsize=9)
        axis.grid(alpha=0.3)
    return figure


def _deformed(field: np.ndarray, step: int = 2) -> Any:
    """Middle slices of a field ``(d, *shape)``: every ``step``-th grid line, deformed."""
    shape = field.shape[1:]
    planes = [(0, 1)] if len(shape) == 2 else [(1, 2), (0, 2), (0, 1)]
    step = max(step, max(shape) // 40)
    figure = _figure(14, 4.6)
    for place, (a, b) in enumerate(planes, start=1):
        axis = figure.add_subplot(1, len(planes), place)
        cut = tuple(slice(None) if i in (a, b) else n // 2 for i, n in enumerate(shape))
        x = np.arange(shape[a])[:, None] + field[(a, *cut)]
        y = np.arange(shape[b])[None, :] + field[(b, *cut)]
        axis.plot(x[::step].T, y[::step].T, color="#246", linewidth=0.7)
        axis.plot(x[:, ::step], y[:, ::step], color="#246", linewidth=0.7)
        axis.set_aspect("equal")
        axis.axis("off")
    return figure
