"""The folder ``fields`` below an output folder: reports and predictions of fields.

Several jobs write single files there, so that it isn't replaced as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py

from scripts.errors import StorageError
from scripts.runtime.ownership import NAME, NeededFiles, check_earlier_report
from scripts.runtime.plain_data import parse_json

__all__ = ["about_of", "check_report_folder"]

_TABLE = "metrics.csv"
_PREDICTIONS = "predictions.h5"
_REPORT = "result.json"


def about_of(path: Path) -> dict[str, Any]:
    """The description in an HDF5 file of this bundle; None if another program made it.

    Args:
        path: of the file; it need not be there.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            content = parse_json(str(file.attrs["about"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return {}
    return content if isinstance(content, dict) and content.get("name") == NAME else {}


def check_report_folder(folder: Path, *inputs: str | Path) -> None:
    """Make sure that what a job replaces in the folder is an earlier job's.

    Tables and curves don't record who made them: they count as ours beside a report or predictions
    of ours.

    Args:
        folder: that files are written to.
        inputs: of the job; none of them may lie where it writes.

    Raises:
        StorageError: naming the file.
    """
    needed = NeededFiles(inputs)
    names = [_REPORT, _PREDICTIONS, _TABLE, *_curves(folder)]
    for name in names:
        if os.path.lexists(folder / name):
            needed.check((folder / name).absolute())
    check_earlier_report(folder / _REPORT, _is_of_a_training)
    ours = about_of(folder / _PREDICTIONS).get("kind") == "predictions"
    beside = {_TABLE: ours, **dict.fromkeys(_curves(folder), (folder / _REPORT).is_file())}
    for name, known in {_PREDICTIONS: ours, **beside}.items():
        if os.path.lexists(folder / name) and not known:
            raise StorageError(
                f"{folder / name}: would be replaced, but was not written by this bundle; move it "
                "elsewhere, or choose another --output_dir"
            )


def _curves(folder: Path) -> Iterable[str]:
    return sorted(path.name for path in folder.glob("training_*.png"))


def _is_of_a_training(report: Mapping[str, Any]) -> bool:
    return {"metrics", "settings", "versions"} <= report.keys()
