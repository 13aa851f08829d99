"""One self-contained HTML page that shows how a new subject was registered to the atlas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scripts.publishing.page import deformed_grid, document, image, light, table, text, views
from scripts.publishing.viewer import STYLE, Shown, script, viewer
from scripts.publishing.viewer_volumes import ViewedSubject, ViewerGrid
from scripts.spatial.jacobian import jacobian_determinant

__all__ = ["Registered", "growth_of", "registration_page"]

_PATIENT = "patient"
_ATLAS = "atlas in the patient's space"
_BEFORE = "atlas before registration"


@dataclass(frozen=True)
class Registered:
    """Volumes of one registration, in the box of the network, on the patient's grid.

    Attributes:
        patient: density ``(C, *box.shape)``.
        atlas: density of the atlas in the patient's space, likewise.
        before: density of the atlas before registration, likewise.
        to_subject: displacement ``(d, *box.shape)`` in voxels that warps the atlas.
        growth: volume of the patient over that of the template ``(*box.shape)``.
        misfit: of the atlas, 0 to 1, ``(*box.shape)``.
        labels: of the patient ``(*box.shape)``; None: there are none.
    """

    patient: np.ndarray
    atlas: np.ndarray
    before: np.ndarray
    to_subject: np.ndarray
    growth: np.ndarray
    misfit: np.ndarray
    labels: np.ndarray | None = None


def growth_of(to_subject: torch.Tensor) -> np.ndarray:
    """Volume of the patient over that of the template, on the patient's grid.

    Args:
        to_subject: ``(d, *shape)`` in voxels; maps points of the patient to points of the template,
            so its determinant is the inverse of the ratio.
    """
    return (1 / jacobian_determinant(to_subject).clamp(1e-3, 1e3)).cpu().numpy()


def registration_page(
    report: Mapping[str, Any],
    registered: Registered,
    grid: ViewerGrid,
    tracts: Sequence[str] = (),
    label_names: Mapping[int, str] | None = None,
) -> str:
    """The page as text; it contains its pictures and loads nothing.

    Args:
        report: content of ``registration.json``.
        registered: the volumes.
        grid: the voxels of the page.
        tracts: name per channel; empty for a single map.
        label_names: of the patient's labels.
    """
    name = str(report["subject"])
    images = [
        Shown("Patient", grid.density(_PATIENT, registered.patient)),
        Shown("Atlas", grid.density(_ATLAS, registered.atlas)),
        Shown("Atlas", grid.density(_BEFORE, registered.before)),
    ]
    fields = {
        "field": grid.field(f"displacement of {name}", registered.to_subject),
        "growth": grid.growth(f"growth of {name}", registered.growth),
        "misfit": grid.misfit(f"local misfit of {name}", registered.misfit),
    }
    overlays = []
    if registered.labels is not None:
        layer = grid.labels(f"labels of {name}", registered.labels, label_names or {})
        overlays.append(Shown("Patient", layer))
    subject = ViewedSubject(name, (True, 0.0, 0), fields)
    drawn = {
        title: np.log1p(np.maximum(density.max(axis=0), 0) / grid.log_offset)
        for title, density in (
            (_PATIENT, registered.patient),
            (_ATLAS, registered.atlas),
            (_BEFORE, registered.before),
        )
    }
    top = max(float(one.max()) for one in drawn.values()) or 1.0
    parts = [
        f"<h1>{text(name)}, registered to the atlas</h1>",
        f"<p class='note'>{text(report['training_space'])}, normalisation "
        f"{text(report['normalisation'])}, template {report['template']} of "
        f"{report['n_templates']}</p>",
        "<h2>Fit</h2>",
        _fit(report),
        "<h2>Slices</h2>",
        "<p class='note'>All images are in the patient's space.</p>",
        viewer(grid, tracts, images, [subject], overlays=overlays, overlay=_ATLAS, group="Patient"),
        "<h2>Patient and atlas</h2>",
        "<p class='note'>Maximum projections of log density on one scale.</p>",
        views(drawn, top),
        "<h2>Field</h2><p class='note'>Middle slices of the patient's grid, each point drawn at "
        "its position in the template: across the first, second and third axis.</p>",
        light(image("deformed grid", deformed_grid(registered.to_subject))),
        "<h2>Report</h2>",
        f"<pre>{text(json.dumps(dict(report), indent=1))}</pre>",
    ]
    return document(f"{name}, registered to the atlas", parts, script(), STYLE)


def _fit(report: Mapping[str, Any]) -> str:
    correlation, dice = report["log_density_correlation"], report["presence_dice"]
    loss = report["loss"]
    pairs = (
        ("correlation of log densities, where the patient is above 0", correlation, ".3f"),
        ("overlap of presence (Dice)", dice, ".3f"),
        ("loss", {when: terms["loss"] for when, terms in loss.items()}, ".4f"),
    )
    rows = [
        (what, f"{values['before']:{form}}", f"{values['after']:{form}}")
        for what, values, form in pairs
    ]
    smallest = min(min(one["min"], one["corner_min"]) for one in report["jacobian"].values())
    rows += [
        ("smallest Jacobian determinant (0 or less: a fold)", "", f"{smallest:.3g}"),
        ("displacement (r.m.s., voxels)", "", f"{report['displacement_rms_voxels']:.2f}"),
    ]
    return table(rows, ("", "before", "after"))
