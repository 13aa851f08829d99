"""``atlas.json``: the description of an atlas, and the hashes for its check."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.cohort import Cohort
from scripts.publishing.provenance import code_identity, description_hash, versions_here
from scripts.publishing.sidecars import describe_atlas
from scripts.runtime.ownership import NAME
from scripts.runtime.storage import file_hash
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["as_json", "description", "write_description"]


def description(
    kind: str,
    cohort: Cohort,
    settings: LearnedAtlasConfig,
    specific: Mapping[str, Any],
    packages: Iterable[str],
) -> dict[str, Any]:
    """The entries that every atlas has: enough to check how its maps were made.

    Args:
        kind: learned, averaged or barycentre.
        cohort: the subjects.
        settings: of the run.
        specific: further entries of this kind.
        packages: libraries whose versions count.
    """
    return {
        "name": NAME,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training_space": settings.training_space,
        "normalisation": cohort.normalisation,
        "presence_value": settings.presence_value,
        "cov_mean_threshold_pct": settings.cov_mean_threshold_pct,
        "n_subjects": len(cohort.subjects),
        "cohort": cohort.as_dict(),
        **specific,
        "settings": settings.as_dict(),
        "code": code_identity(),
        "versions": versions_here(*packages),
    }


def write_description(
    folder: Path, about: dict[str, Any], known: Mapping[str, str] | None = None
) -> None:
    """Write the sidecars, and last ``atlas.json`` with the hash of every file that is there.

    Args:
        folder: of the atlas, all its other files written.
        about: see `description`; hashes are added.
        known: hashes of files that needn't be read for it, by name.
    """
    describe_atlas(folder, about)
    hashes = dict(known or {})
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in hashes:
            hashes[name] = file_hash(path)
    about["files"] = dict(sorted(hashes.items()))
    about["description_sha256"] = description_hash(about)
    (folder / "atlas.json").write_text(as_json(about), "utf-8")


def as_json(values: Any) -> str:
    return json.dumps(values, indent=1) + "\n"
