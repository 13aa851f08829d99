"""What lies in the folder of reports and predictions, and may be replaced."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from scripts.errors import StorageError
from scripts.supervised.report_folder import about_of, check_report_folder


def predictions(path: Path, about: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["about"] = about
    return path


OURS = json.dumps({"name": "tract_density_atlas", "kind": "predictions"})


@pytest.mark.parametrize(
    "about", ["{}", "[1]", "[" * 100_000, "1e400", "no JSON", json.dumps({"name": "other"})]
)
def test_nonsense_names_no_owner(about: str, tmp_path: Path) -> None:
    assert about_of(predictions(tmp_path / "a.h5", about)) == {}
    assert about_of(tmp_path / "none.h5") == {}


def test_what_earlier_jobs_left_is_replaced(tmp_path: Path) -> None:
    check_report_folder(tmp_path / "none")
    predictions(tmp_path / "predictions.h5", OURS)
    (tmp_path / "metrics.csv").write_text("pair\n")
    report = {"metrics": {}, "settings": {}, "versions": {}}
    (tmp_path / "result.json").write_text(json.dumps(report))
    (tmp_path / "training_global.png").write_bytes(b"")
    check_report_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["predictions.h5", "metrics.csv", "result.json", "training_local.png"]
)
def test_what_others_left_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=rf"{name}: would be replaced"):
        check_report_folder(tmp_path)


def test_an_input_is_no_output(tmp_path: Path) -> None:
    store = predictions(tmp_path / "predictions.h5", OURS)
    with pytest.raises(StorageError, match="the job reads or needs"):
        check_report_folder(tmp_path, store)
