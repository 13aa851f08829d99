"""The bundle's fields of a subject: those of the atlas's cohort, and those of `registering`."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import CohortError, some_names
from scripts.publishing.published_atlas import PublishedAtlas
from scripts.runtime.input_files import FileError, read_json
from scripts.runtime.inside import inside
from scripts.spatial.fields import field_names

__all__ = ["subject_field"]


def subject_field(
    atlas: PublishedAtlas, registered_dir: Path, subject: str, key: str, to_template: bool = True
) -> tuple[Path, int]:
    """The field that maps a subject's points to the template, or the template's to the subject.

    Args:
        atlas: a learned atlas.
        registered_dir: output folder of ``registering``.
        subject: name of a subject of the atlas's cohort, or of a registered one.
        key: the setting for external transforms, for messages.
        to_template: the direction of points.

    Returns:
        Path of the field, and the index of its template, from 1.

    Raises:
        CohortError: the subject is unknown, has no field, or one to another atlas.
    """
    name = field_names(subject)[1 if to_template else 0]
    known = subject in atlas.subjects
    field = inside(atlas.folder, f"fields/{name}")
    if known and field.is_file():
        return field, atlas.assigned_template(subject)
    field = inside(registered_dir, f"{subject}/{name}")
    if field.is_file():
        return field, _registered_to(atlas, field.with_name("registration.json"), key)
    if known:
        raise CohortError(
            f"subject {subject}: no such field {atlas.folder / 'fields' / name}; publish the "
            "atlas with learned_atlas#save_fields true"
        )
    raise CohortError(
        f"unknown subject {subject}: neither in the atlas's cohort "
        f"({some_names(atlas.subjects, most=10)}) nor registered in {registered_dir}; register it "
        f"first, or give {key}"
    )


def _registered_to(atlas: PublishedAtlas, report: Path, key: str) -> int:
    """Template of a registered subject's field, from its report."""
    try:
        about = read_json(inside(report.parent, report.name))
        weights, template = about["weights"], int(about["template"])
    except (FileError, ValueError, KeyError, TypeError) as error:
        raise CohortError(f"{report}: doesn't name the atlas of its field") from error
    chosen = (atlas.about.get("covariates") or {}).get("at")
    if chosen is not None:
        raise CohortError(
            f"{report.parent}: its field leads to the template of the cohort's mean, but the atlas "
            f"in {atlas.folder} is that at {chosen}; use the atlas of the mean, or give {key}"
        )
    # By `--template` there is no model of the atlas; the field leads to the map itself.
    template_map = atlas.about.get("files", {}).get("atlas_mean.nii.gz")
    to_this_map = template_map is not None and about.get("template_sha256") == template_map
    if weights != atlas.about.get("weights") and not to_this_map:
        raise CohortError(
            f"{report.parent}: was registered to another model than that of the atlas in "
            f"{atlas.folder}; register the subject again"
        )
    return template
