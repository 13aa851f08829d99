"""Measures of one registered subject, and of a template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.atlas.registration import Registration
from scripts.metrics import (
    dice,
    entropy_focus_criterion,
    gradient_magnitude,
    inverse_consistency,
    log_density_correlation,
)
from scripts.spatial.grid import CropBox

__all__ = ["field_measures", "likeness", "sharpness"]


def likeness(
    subject: np.ndarray, atlas: np.ndarray, log_offset: float, presence_value: float
) -> tuple[float, float]:
    """How well an atlas in a subject's space explains the subject, mean over the channels.

    Args:
        subject: density ``(C, *shape)``; an empty channel has no correlation.
        atlas: density of the same shape.
        log_offset: see `log_density_correlation`.
        presence_value: density above which (strictly) a tract is present.

    Returns:
        Correlation of log densities on the subject's support, and Dice of presence.
    """
    correlations = [
        log_density_correlation(template_map, subject_map, log_offset, subject_map > 0)
        for template_map, subject_map in zip(atlas, subject, strict=True)
        if subject_map.any()
    ]
    overlaps = [
        dice(template_map > presence_value, subject_map > presence_value)
        for template_map, subject_map in zip(atlas, subject, strict=True)
    ]
    return float(np.mean(correlations)) if correlations else 0.0, float(np.mean(overlaps))


def field_measures(
    registration: Registration, crop: CropBox, subject: np.ndarray, template: np.ndarray
) -> dict[str, float]:
    """Regularity and size of the two fields of a subject.

    Args:
        registration: both fields on the whole grid.
        crop: the box of the densities; fields are constant outside it.
        subject: density ``(C, *crop.shape)``.
        template: density ``(C, *crop.shape)``.

    Returns:
        ``smallest_jacobian`` and ``folded_share`` (of voxels or cells, whichever is larger) over
        both fields; ``displacement_rms_voxels`` over the template's support;
        ``inverse_consistency_voxels``, r.m.s. over the subject's support, of mapping from the
        subject to the template and back.
    """
    to_template, to_subject = (
        crop.crop(field[0]).double().cpu().numpy()
        for field in (registration.to_template, registration.to_subject)
    )
    template_support, subject_support = (
        np.asarray((density > 0).any(axis=0)) for density in (template, subject)
    )
    lengths = (to_template**2).sum(axis=0)
    return {
        "smallest_jacobian": registration.smallest_jacobian,
        "folded_share": max(
            max(s["share_folded"], s["corner_share_folded"]) for s in registration.jacobian.values()
        ),
        "displacement_rms_voxels": float(np.sqrt(lengths[template_support].mean()))
        if template_support.any()
        else 0.0,
        "inverse_consistency_voxels": (
            inverse_consistency(to_subject, to_template, subject_support)
            if subject_support.any()
            else 0.0
        ),
    }


def sharpness(
    density: np.ndarray, log_offset: float, spacing: Sequence[float]
) -> tuple[float, float]:
    """Entropy focus criterion and mean gradient of the log density, mean over channels.

    Args:
        density: ``(C, *shape)``.
        log_offset: of the logarithm.
        spacing: mm.

    Returns:
        EFC of the density (lower is sharper) and the mean gradient magnitude of
        ``log1p(x / log_offset)`` on the density's support, per mm.
    """
    steps = tuple(float(step) for step in spacing)
    focus = [entropy_focus_criterion(one) for one in density]
    slopes = [gradient_magnitude(np.log1p(one / log_offset), one > 0, steps) for one in density]
    return float(np.mean(focus)), float(np.mean(slopes))
