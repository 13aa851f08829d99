"""One self-contained HTML page that shows the published atlas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.publishing.page import (
    deformed_grid,
    document,
    figure,
    image,
    light,
    table,
    text,
    views,
)
from scripts.publishing.viewer import STYLE, script

__all__ = ["SubjectQuality", "quality_page"]

SubjectQuality = dict[str, Any]
"""``subject``, ``loss`` (or None), ``overlap``, ``correlation``, ``smallest_jacobian``,
``displacement`` of one subject."""

_LONG = 25  # rows of a table that are seen without scrolling


def quality_page(
    about: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    subjects: Sequence[SubjectQuality],
    grids: Mapping[str, np.ndarray],
    losses: Sequence[Mapping[str, float]],
    viewed: str = "",
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
        viewed: what `viewer` made; empty: a page without it.
    """
    cohort = about["cohort"]
    top = max((float(p.max()) for p in pictures.values()), default=1.0) or 1.0
    parts = [
        "<h1>Learned tract-density atlas</h1>",
        f"<p class='note'>{about['n_subjects']} subjects, {text(about['created'])}, "
        f"{text(about['training_space'])}, normalisation {text(about['normalisation'])}</p>",
        _facts(about),
        *(("<h2>Slices</h2>", viewed) if viewed else ()),
        "<h2>Template, plain average, subjects</h2>"
        "<p class='note'>Maximum projections of log density on one scale.</p>",
        views(pictures, top),
        "<h2>Maps</h2>",
        "<p class='note'>Maximum projections, each map on its own scale from 0.</p>",
        views(maps, None),
    ]
    if losses:
        parts += ["<h2>Losses</h2>", light(image("losses by epoch", _curves(losses)))]
    parts += ["<h2>Subjects, worst first</h2>", _subject_table(subjects)]
    if grids:
        parts += [
            "<h2>Fields</h2><p class='note'>Middle slices of the template's grid, each point "
            "drawn at its position in the subject: across the first, second and third axis.</p>",
            *(
                light(image(f"deformed grid of {title}", deformed_grid(field)), title)
                for title, field in grids.items()
            ),
        ]
    parts += ["<h2>Left out</h2>", _left_out(cohort)]
    for title in ("settings", "versions"):
        parts.append(f"<h2>{title.capitalize()}</h2>")
        parts.append(f"<pre>{text(json.dumps(about[title], indent=1))}</pre>")
    title = "Learned tract-density atlas"
    return document(title, parts, script() if viewed else "", STYLE if viewed else "")


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
    return table(list(rows.items()))


def _left_out(cohort: Mapping[str, Any]) -> str:
    """The rejected subjects with reasons, and the folders without a map."""
    left_out = [(one["subject"], one["reason"]) for one in cohort["rejected"]]
    left_out += [(name, "folder without a map") for name in cohort.get("without_map", ())]
    if not left_out:
        return "<p>No subject was left out.</p>"
    return _scrolled(table(left_out, ("subject", "reason"), kind="text"), len(left_out))


def _scrolled(content: str, rows: int) -> str:
    """A table; a long one in a frame, so that what follows is not far below."""
    return content if rows <= _LONG else f"<div class='long'>{content}</div>"


def _subject_table(subjects: Sequence[SubjectQuality]) -> str:
    """Worst first: subjects whose fields fold, then by how well the template fits."""
    rows = []
    for one in sorted(subjects, key=lambda s: (s["smallest_jacobian"] > 0, s["correlation"])):
        mark = " class='bad'" if one["smallest_jacobian"] <= 0 else ""
        loss = "" if one["loss"] is None else f"{one['loss']:.4f}"
        rows.append(
            f"<tr{mark}><td>{text(one['subject'])}</td><td>{loss}</td>"
            f"<td>{one['overlap']:.3f}</td><td>{one['correlation']:.3f}</td>"
            f"<td>{one['smallest_jacobian']:.3g}</td><td>{one['displacement']:.2f}</td></tr>"
        )
    made = (
        "<table id='subjects'><tr><th>subject</th><th>loss</th><th>overlap (Dice)</th>"
        "<th>correlation</th><th>smallest det J</th><th>displacement (voxels)</th></tr>"
        f"{''.join(rows)}</table>"
    )
    return (
        _scrolled(made, len(rows))
        + "<p class='note'>Loss, and overlap of presence: the template in the subject's "
        "space. Correlation of log densities: the subject in template space, where either is "
        "above 0. Displacement: r.m.s. over the grid.</p>"
    )


def _curves(losses: Sequence[Mapping[str, float]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    names = list(losses[0])
    columns = 3
    rows = -(-len(names) // columns)
    drawn = figure(14, 2.6 * rows)
    for place, name in enumerate(names, start=1):
        axis = drawn.add_subplot(rows, columns, place)
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
    return drawn
