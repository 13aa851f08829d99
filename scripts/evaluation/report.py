"""The table and the JSON file of an evaluation."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import shown
from scripts.runtime.ownership import NAME
from scripts.runtime.storage import publish_folder
from scripts.runtime.tables import write_table

__all__ = ["LABELS", "publish_evaluation", "summary", "table", "versions"]

Row = dict[str, Any]

# Columns of the table, and their printed headings.
LABELS = {
    "correlation": "corr",
    "correlation_unregistered": "unreg.",
    "correlation_average": "average",
    "presence_dice": "Dice",
    "presence_dice_unregistered": "unreg.",
    "presence_dice_average": "average",
    "smallest_jacobian": "min det J",
    "folded_share": "folded",
    "displacement_rms_voxels": "moved",
    "inverse_consistency_voxels": "inv. cons.",
    "label_dice": "labels",
}


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float] | None]:
    """Mean, standard deviation (n - 1; 0 for one subject), minimum and maximum of each measure.

    A measure that some subjects lack is None.
    """
    result: dict[str, dict[str, float] | None] = {}
    for name in LABELS:
        values: list[Any] = [row.get(name) for row in rows]
        if any(value is None for value in values):
            result[name] = None
            continue
        result[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            "min": float(min(values)),
            "max": float(max(values)),
        }
    return result


def table(rows: Sequence[Row]) -> str:
    """The rows as text, worst first, with the means at the end."""
    names = [name for name in LABELS if all(row.get(name) is not None for row in rows)]
    width = max(7, *(len(shown(row["subject"])) for row in rows))
    lines = [" ".join([f"{'subject':<{width}}", *(f"{LABELS[n]:>10}" for n in names)])]
    for row in sorted(rows, key=lambda one: one["correlation"]):
        cells = (f"{row[name]:>10.4g}" for name in names)
        lines.append(" ".join([f"{shown(row['subject']):<{width}}", *cells]))
    means = summary(rows)
    cells = (f"{mean['mean']:>10.4g}" for name in names if (mean := means[name]) is not None)
    lines.append(" ".join([f"{'mean':<{width}}", *cells]))
    return "\n".join(lines)


def publish_evaluation(
    folder: Path,
    rows: Sequence[Row],
    about: dict[str, Any],
    labels: Sequence[Row] = (),
) -> None:
    """Write ``evaluation.csv`` and ``evaluation.json`` into a folder, completely or not at all.

    Args:
        folder: replaced if it exists.
        rows: one measure per column; the same columns in each row.
        about: further content of the JSON; the rows and their `summary` are added.
        labels: rows of ``labels.csv``: subject, label, name, dice; none: there is no such file.

    Raises:
        StorageError: it can't be written; an earlier folder stays.
    """
    content = {
        "name": NAME,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "n_subjects": len(rows),
        "summary": summary(rows),
        "subjects": list(rows),
        "versions": versions(),
    }
    with publish_folder(folder) as staging:
        with (staging / "evaluation.csv").open("w", newline="", encoding="utf-8") as file:
            write_table(file, list(rows[0]), rows)
        if labels:
            with (staging / "labels.csv").open("w", newline="", encoding="utf-8") as file:
                write_table(file, ("subject", "label", "name", "dice"), labels)
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        (staging / "evaluation.json").write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of the software that the numbers depend on."""
    packages = ("torch", "monai", "nibabel", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
