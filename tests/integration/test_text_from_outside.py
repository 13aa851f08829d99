"""Names, table cells and JSON values that look like code, paths or escapes are text everywhere."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bundle import cli
from bundle.bench.faults import write_cohort
from bundle.sweep import table_of
from bundle.sweep_metrics import metrics_of
from scripts.errors import TrainingError
from scripts.evaluation.folds import CrossValidation
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.evaluate import EvaluateConfig
from scripts.transport.picture import draw_classes
from scripts.transport.segmented_atlas import file_names

ROOT = Path(__file__).resolve().parents[2]
CODE = "$__import__('os').mkdir('PWNED')"
ODD = [CODE, "@x", "%x", "{}", "{subject}", "a#b", "=1+1", "\u202egnp"]
FLAT = ("--learned_atlas#cohort#layout", "flat", "--learned_atlas#cohort#normalisation", "none")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose names are odd, in a folder whose name is, with a table of odd values."""
    folder = tmp_path_factory.mktemp("$data") / "@cohort"
    write_cohort(folder, len(ODD), (12, 12, 12))
    rows = [f"participant_id\t{CODE}"]
    for number, name in enumerate(ODD, start=1):
        (folder / f"sub-{number:04d}.nii.gz").rename(folder / f"{name}.nii.gz")
        rows.append(f"{name}\t{('@x', '%x')[number % 2]}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which no name may have made anything."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("PWNED"))


def run(*words: object) -> int:
    """A verb in this process; what MONAI does to the log is undone."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        return cli.main([*map(str, words), "--learned_atlas#device", "cpu"])
    finally:
        root.handlers[:], root.level = before[0], before[1]


def test_folds_of_odd_names_and_covariates(dataset: Path, here: Path) -> None:
    asked = {
        "device": "cpu", "dtype": "float32", "min_subjects": 2, "save_fields": False,
        "cohort": {"layout": "flat", "normalisation": "none"},
        "model": {"enc_features": [4], "dec_features": [4, 4], "covariates": [CODE]},
        "optimizer": {"epochs": 1}, "refine": {"rounds": 1, "iterations": 1},
        "loss": {"window": 3, "scales": [1]},
    }  # fmt: skip
    folder = CrossValidation(
        dataset, here / "$o", here / "@m", ROOT / "configs/train.yaml",
        ROOT / "configs/evaluate.yaml", LearnedAtlasConfig.load(asked),
        EvaluateConfig.load({"folds": 2}), ROOT,
    ).run()  # fmt: skip
    about = json.loads((folder / "evaluation.json").read_text())
    assert sorted(one["subject"] for one in about["subjects"]) == sorted(ODD)
    with (folder / "evaluation.csv").open(newline="", encoding="utf-8") as file:
        cells = [row["subject"] for row in csv.DictReader(file)]
    assert "'=1+1" in cells and "'@x" in cells and "\\u202egnp" in cells
    page = (here / "@m/cross_validation/fold-1/learned_atlas/quality.html").read_text("utf-8")
    assert "\u202e" not in page


def test_an_atlas_of_odd_names_is_made_verified_carried_and_compared(
    dataset: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--dataset_dir", dataset, "--output_dir", here / "o")
    assert run("check", "--dataset_dir", dataset, *FLAT) == 0
    assert run("average", *folders, *FLAT) == 0
    assert cli.main(["verify", str(here / "o/atlas")]) == 0
    words = ("--atlas_dir", here / "o/atlas", "--output_dir", here / "o")
    assert cli.main(["carry", *map(str, words)]) == 0
    assert run("compare", *folders, "--carried_dir", here / "o", *FLAT) == 0
    assert {path.name for path in (here / "o").iterdir()} >= set(ODD)
    with (here / "o/tract_similarity/cohort.csv").open(newline="", encoding="utf-8") as file:
        assert "'=1+1" in [row["subject"] for row in csv.DictReader(file)]
    output = capsys.readouterr()
    assert "\u202e" not in output.out + output.err
    assert "\\u202egnp" in output.out


@pytest.mark.parametrize("kind", ["txt", "csv", "json"])
def test_a_list_of_odd_names(
    dataset: Path, here: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(dataset, here / "data"))
    listed = folder / f"list.{kind}"
    if kind == "txt":
        listed.write_text("\n".join(ODD), encoding="utf-8")
    elif kind == "csv":
        with listed.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([name, f"{name}.nii.gz"] for name in ODD)
    else:
        entries = [{"image": f"{name}.nii.gz", "subject": f"{name}"} for name in ODD]
        listed.write_text(json.dumps({"training": entries}), encoding="utf-8")
    words = ("--learned_atlas#cohort#subjects", listed.name, *FLAT)
    assert run("check", "--dataset_dir", folder, *words) == 0
    assert f"{len(ODD)} subjects found, 0 rejected" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[2J", "\x9b31m", "a\tb"])
def test_a_name_that_moves_a_terminal_is_left_out_and_shown(
    dataset: Path, here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(dataset, here / "data"))
    shutil.copy(folder / "@x.nii.gz", folder / f"{name}.nii.gz")
    assert run("check", "--dataset_dir", folder, *FLAT) == 0
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if "  rejected  " in line]
    assert len(lines) == 1
    assert (output.out + output.err).replace("\n", "").isprintable()


# ---------------------------------------------------------------------------------------------
# Reports and labels
# ---------------------------------------------------------------------------------------------


def test_a_report_with_odd_names_is_a_table_of_text(here: Path) -> None:
    (here / "affine").mkdir()
    metrics = dict.fromkeys(ODD, 0.5)
    (here / "affine/result.json").write_text(json.dumps({"metrics": metrics, "loss": {}}))
    result = metrics_of(here)
    assert result == dict.fromkeys(ODD, "0.5")
    row = {"run": "a\nb", "status": "done", **result, "seconds": "1"}
    lines = table_of([row]).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"metrics": 3, "loss": 4}', '{"metrics": {"a": "$1"}, "loss": {}}',
     '{"metrics": {"a": [1]}, "loss": {}}', '{"metrics": {"a": 1e400}, "loss": {}}', "[" * 99999],
)  # fmt: skip
def test_a_report_that_is_none_is_named(here: Path, text: str) -> None:
    (here / "affine").mkdir()
    (here / "affine/result.json").write_text(text)
    with pytest.raises(TrainingError, match=r"result\.json") as caught:
        metrics_of(here)
    assert str(caught.value).isprintable()


LABELS = [*ODD, "../../x", "/etc/x", "a\nb", r"$\frac{$ x $", "_x", "outliers", "x" * 300, "", "é"]


def test_files_of_classes_are_called_after_their_names_and_lie_in_one_folder() -> None:
    result = file_names((*LABELS, "E\u0301".lower(), "Outliers"))
    assert len({name.casefold() for name in result}) == len(LABELS) + 2
    assert all(Path(name).name == name and len(name.encode()) < 250 for name in result)
    assert "outliers" not in {name.casefold() for name in result}


def test_names_of_classes_are_no_formulas_in_a_picture(here: Path) -> None:
    lines = np.random.default_rng(0).normal(size=(len(LABELS), 5, 3)).astype(np.float32)
    classes = np.arange(len(LABELS))
    draw_classes(here / "labels.png", lines, classes, LABELS, r"a $\frac{$ b $x_")
    assert (here / "labels.png").stat().st_size > 0
