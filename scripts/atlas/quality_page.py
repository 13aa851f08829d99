"""One self-contained HTML page that shows what was published."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["SubjectQuality", "quality_page", "three_views"]

SubjectQuality = dict[str, Any]
"""``subject``, ``correlation``, ``smallest_jacobian``, ``displacement`` of one subject."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222;
       padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc }
img { max-width: 100%; background: #000 } table { border-collapse: collapse }
td, th { padding: .15rem .9rem .15rem 0; text-align: right } td:first-child, th:first-child {
text-align: left } tr.bad td { color: #b00020; font-weight: bold } pre { background: #f5f5f5;
padding: 1rem; overflow-x: auto; font-size: 12px } .note { color: #666 }
"""


def three_views(volume: np.ndarray, gap: int = 2) -> np.ndarray:
    """Maximum projections along the three axes side by side, superior and anterior up.

    Args:
        volume: ``(X, Y, Z)``, or ``(X, Y)``, which is its own view.
        gap: columns of zeros between the views.

    Returns:
        a picture ``(rows, columns)``.
    """
    if volume.ndim == 2:
        return np.flipud(volume.T)
    views = [np.flipud(volume.max(axis).T) for axis in range(3)]
    height = max(view.shape[0] for view in views)
    padded = [np.pad(view, ((height - view.shape[0], 0), (0, gap))) for view in views]
    return np.concatenate(padded, axis=1)


def quality_page(
    about: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    subjects: Sequence[SubjectQuality],
    grids: Mapping[str, np.ndarray],
    losses: Sequence[Mapping[str, float]],
) -> str:
    """The page as text; pictures are inside it, nothing is loaded from anywhere.

    Args:
        about: what ``atlas.json`` holds.
        pictures: titled log densities ``(*shape)``, drawn on one scale: template, average,
            subjects.
        maps: the published maps ``(*shape)`` by name, each on its own scale.
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
        _image(_views(pictures, top)),
        "<h2>Maps</h2>",
        _image(_views(maps, None)),
    ]
    if losses:
        parts += ["<h2>Losses</h2>", _image(_curves(losses), light=True)]
    parts += ["<h2>Subjects, worst first</h2>", _subject_table(subjects)]
    if grids:
        parts += [
            "<h2>Fields</h2><p class='note'>Middle slices of the template's grid, each point "
            "drawn where it lies in the subject.</p>",
            _image(_deformed(grids), light=True),
        ]
    parts.append("<h2>Left out</h2>")
    if cohort["rejected"]:
        rows = "".join(
            f"<tr><td>{_text(r['subject'])}</td><td>{_text(r['reason'])}</td></tr>"
            for r in cohort["rejected"]
        )
        parts.append(f"<table><tr><th>subject</th><th>reason</th></tr>{rows}</table>")
    else:
        parts.append("<p>No subject was left out.</p>")
    for title in ("settings", "versions"):
        parts.append(f"<h2>{title.capitalize()}</h2>")
        parts.append(f"<pre>{_text(json.dumps(about[title], indent=1))}</pre>")
    return "\n".join([*parts, "</body></html>\n"])


def _text(value: Any) -> str:
    return html.escape(str(value))


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


def _subject_table(subjects: Sequence[SubjectQuality]) -> str:
    rows = []
    for one in sorted(subjects, key=lambda s: s["correlation"]):
        mark = " class='bad'" if one["smallest_jacobian"] <= 0 else ""
        rows.append(
            f"<tr{mark}><td>{_text(one['subject'])}</td><td>{one['correlation']:.3f}</td>"
            f"<td>{one['smallest_jacobian']:.3g}</td><td>{one['displacement']:.2f}</td></tr>"
        )
    return (
        "<table><tr><th>subject</th><th>correlation with the template</th>"
        "<th>smallest det J</th><th>displacement (voxels)</th></tr>" + "".join(rows) + "</table>"
        "<p class='note'>Correlation of log densities in template space, where either is above "
        "0.</p>"
    )


def _figure(width: float, height: float, light: bool = False) -> Any:
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height), facecolor="white" if light else "black", layout="constrained"
    )


def _image(figure: Any, light: bool = False) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = " style='background:#fff'" if light else ""
    return f"<img alt='' src='data:image/png;base64,{data}'{style}>"


def _views(volumes: Mapping[str, np.ndarray], top: float | None) -> Any:
    rows = -(-len(volumes) // 2)
    figure = _figure(13, 2.9 * rows)
    for place, (title, volume) in enumerate(volumes.items(), start=1):
        axis = figure.add_subplot(rows, 2, place)
        limit = top if top is not None else float(volume.max()) or 1.0
        axis.imshow(three_views(volume), cmap="inferno", vmin=0, vmax=limit)
        note = "" if top is not None else f" (largest {float(volume.max()):.3g})"
        axis.set_title(title + note, color="white", fontsize=10, loc="left")
        axis.axis("off")
    return figure


def _curves(losses: Sequence[Mapping[str, float]]) -> Any:
    names = list(losses[0])
    figure = _figure(13, 2.6, light=True)
    for place, name in enumerate(names, start=1):
        axis = figure.add_subplot(1, len(names), place)
        axis.plot(range(1, len(losses) + 1), [epoch[name] for epoch in losses])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.tick_params(labelsize=8)
    return figure


def _deformed(grids: Mapping[str, np.ndarray], step: int = 3) -> Any:
    count = next(iter(grids.values())).shape[0]
    planes = [(0, 1)] if count == 2 else [(1, 2), (0, 2), (0, 1)]
    figure = _figure(13, 4.0 * len(grids), light=True)
    place = 0
    for title, field in grids.items():
        shape = field.shape[1:]
        for a, b in planes:
            place += 1
            axis = figure.add_subplot(len(grids), len(planes), place)
            cut = tuple(slice(None) if i in (a, b) else n // 2 for i, n in enumerate(shape))
            x = np.arange(shape[a])[:, None] + field[(a, *cut)]
            y = np.arange(shape[b])[None, :] + field[(b, *cut)]
            axis.plot(x[::step].T, y[::step].T, color="#246", linewidth=0.5)
            axis.plot(x[:, ::step], y[:, ::step], color="#246", linewidth=0.5)
            axis.set_aspect("equal")
            axis.axis("off")
            axis.set_title(title, fontsize=9, loc="left")
    return figure
