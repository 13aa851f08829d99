"""Sweeps: which runs they make, what they leave, and how they continue."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from bundle import cli
from bundle.overrides import UsageError, parse_overrides
from bundle.sweep import planned_runs, sweep, table_of
from bundle.sweep_metrics import best_run, metrics_of, smaller_is_better
from scripts.errors import StorageError, TrainingError
from scripts.runtime.lock import lock_folders

JOB = """\
# Stands in for `python bundle <verb> --key=value ...`: leaves a report, or fails.
import json, pathlib, sys
given = dict(word[2:].split("=", 1) for word in sys.argv[2:])
place = pathlib.Path(given["output_dir"])
with (place.parent.parent / "calls.txt").open("a") as file:
    file.write(place.name + "\\n")
if given.get("family") == "broken":
    sys.exit("error: the family is broken")
(place / "affine").mkdir(parents=True)
metrics = {"rotation_error": 2.0, "distance": float(given["fold"]) + 0.5}
(place / "affine" / "result.json").write_text(json.dumps({"metrics": metrics, "loss": {}}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle whose job is `JOB`."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "__main__.py").write_text(JOB, encoding="utf-8")
    (tmp_path / "job.yaml").write_text(
        "bundle_root: .\noutput_dir: $@bundle_root + '/output'\nckpt_dir: x\nfold: 0\nfamily: a\n",
        encoding="utf-8",
    )
    return tmp_path


def run(root: Path, *words: str) -> None:
    sweep("job", [root / "job.yaml"], words, root)


def calls(root: Path) -> list[str]:
    return (root / "output" / "calls.txt").read_text(encoding="utf-8").split()


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "output/sweep/results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_is_run_in_order():
    _, overrides = parse_overrides(
        ["--fold", "0,1", "--learned_affine#family", "rigid,affine", "--x", "[1, 2]", "--y", "null"]
    )
    runs = planned_runs(overrides)
    assert [one.name for one in runs] == [
        "fold-0_family-rigid",
        "fold-0_family-affine",
        "fold-1_family-rigid",
        "fold-1_family-affine",
    ]
    assert runs[1].overrides == {
        "fold": "0", "learned_affine#family": "affine", "x": "[1, 2]", "y": "null",
    }  # fmt: skip
    assert runs[1].varied == {"fold": "0", "learned_affine#family": "affine"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fold", "0"], "no setting varies"),
        (["--fold", "1,1"], "--fold names a value twice"),
        (["--a#lr", "x,y", "--nope", "1"], "has no"),
        (["--fold", "0,1", "--nope", "1"], "has no nope"),
        (["--output_dir", "a,b"], "output_dir and ckpt_dir can't vary"),
        (["--fold", "0,1", "--config_file", "a.yaml"], "no such configuration file: a.yaml"),
        (["--fold", "0,1", "--best", "a,b"], "must be the name of one metric"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_sweeps_without_sense_are_refused_before_anything_runs(root, words, message):
    with pytest.raises(UsageError, match=message):
        run(root, *words)
    assert not (root / "output").exists()


def test_a_sweep_makes_one_table_and_continues_where_it_was(root, capsys):
    run(root, "--fold", "0,1")
    assert calls(root) == ["fold-0", "fold-1"]
    table = rows(root)
    assert [row["distance"] for row in table] == ["0.5", "1.5"]
    assert [row["status"] for row in table] == ["done", "done"]
    printed = capsys.readouterr().out
    assert table_of(table) in printed
    assert printed.index("distance") < printed.index("rotation_error")  # what matters first

    run(root, "--fold", "0,1,2")
    assert calls(root) == ["fold-0", "fold-1", "fold-2"]  # the first two were only read
    assert [row["fold"] for row in rows(root)] == ["0", "1", "2"]
    (root / "output/sweep/fold-1/sweep_run.json").unlink()  # as if it had been cut off
    for path in (root / "output/sweep/fold-1/affine").iterdir():
        path.unlink()
    (root / "output/sweep/fold-1/affine").rmdir()
    run(root, "--fold", "0,1,2")
    assert calls(root)[3:] == ["fold-1"]


def test_the_best_run_is_named_and_drawn(root, capsys):
    run(root, "--fold", "1,0.5,2", "--family", "a,b")
    result = rows(root)
    assert [row["distance"] for row in result[:2]] == ["1.5", "1.5"]
    folder = root / "output/sweep"
    output = capsys.readouterr().out
    assert f"best by distance: fold-0.5_family-a, in {folder / 'fold-0.5_family-a'}\n" in output
    assert imread(folder / "results.png").ndim == 3
    run(root, "--fold", "1,0.5,2", "--family", "a,b", "--best", "rotation_error")
    assert "best by rotation_error: fold-1_family-a" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="--best dice: no run has this metric; must be one of"):
        run(root, "--fold", "1,0.5,2", "--family", "a,b", "--best", "dice")


def test_another_configuration_is_swept_and_a_changed_one_is_run_again(root, monkeypatch):
    other = root / "other.yaml"
    text = (root / "job.yaml").read_text(encoding="utf-8")
    other.write_text(text.replace("fold: 0", "folds_of_mine: 0"), encoding="utf-8")
    words = ["--config_file", str(other), "--fold", "0", "--folds_of_mine", "0,1"]
    with pytest.raises(UsageError, match="--fold: the configuration has no fold"):
        run(root, *words)
    other.write_text(text + "more: 1\n", encoding="utf-8")
    words = ["--config_file", str(other), "--fold", "0,1", "--more", "2"]
    run(root, *words)
    run(root, *words)
    assert calls(root) == ["fold-0", "fold-1"]
    other.write_text(text + "more: 3\n", encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr(
        "bundle.sweep._run", lambda job, one, place: (asked.append(one.name), ("done", 1.0))[1]
    )
    run(root, *words)
    assert asked == ["fold-0", "fold-1"]


def test_a_job_that_reads_a_network_keeps_its_folder(root):
    (root / "bundle" / "__main__.py").write_text(
        JOB.replace("if given", 'assert given["ckpt_dir"] == "nets"\nif given', 1),
        encoding="utf-8",
    )
    words = ["--fold", "0,1", "--ckpt_dir", "nets"]
    sweep("job", [root / "job.yaml"], words, root, trains=False)
    assert [row["status"] for row in rows(root)] == ["done", "done"]


def test_metrics_of_every_kind_of_report(tmp_path):
    def write(name: str, content: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")

    write(
        "learned_atlas/atlas.json",
        {
            "training": {"epochs": 3, "losses": {"loss": 0.5}},
            "fit": {"correlation": 0.9, "overlap": 0.8},
            "fields": {"convention": "ITK", "folded": 0},
            "settings": {"optimizer": {"lr": 1}},
        },
    )  # fmt: skip
    assert metrics_of(tmp_path) == {
        "overlap": "0.8", "correlation": "0.9", "training_loss": "0.5", "folded": "0",
    }  # fmt: skip
    for number, value in enumerate((1.0, 3.0)):
        write(
            f"b/refined/{number}/refined.json",
            {"correlation": {"before": 0.1, "after": value}, "matrix": [[1]], "seed": 3},
        )  # fmt: skip
    assert metrics_of(tmp_path / "b") == {"correlation_before": "0.1", "correlation_after": "2"}
    write("c/evaluation/evaluation.json", {"summary": {"a": {"mean": 2, "sd": 0}, "b": None}})
    assert metrics_of(tmp_path / "c") == {"a": "2"}
    write("c/models/cross_validation/fold-1/evaluation/evaluation.json", {"summary": {"a": 1}})
    assert metrics_of(tmp_path / "c") == {"a": "2"}
    write("d/registration/curve.json", [{"loss": n} for n in range(100)])
    assert metrics_of(tmp_path / "d") == {"training_loss": "94.5"}
    write("e/affine/result.json", [1])
    with pytest.raises(TrainingError, match=r"result\.json: is not a report of a job"):
        metrics_of(tmp_path / "e")
    assert metrics_of(tmp_path / "none") == {}


def test_no_run_is_best_by_a_number_that_may_mean_anything():
    rows = [{"run": "a", "status": "done", "x": "1", "outliers_count": "3", "seconds": "1"}]
    assert best_run(rows, ["x"]) is None
    assert best_run(rows, ["x"], "outliers_count") == ("a", "outliers_count")


def test_costs_and_merits_are_distinguished():
    for cost in ("distance", "rotation_error", "training_loss", "seconds", "folded_share"):
        assert smaller_is_better(cost)
    for merit in ("label_dice", "overlap", "correlation_after", "presence_dice"):
        assert not smaller_is_better(merit)


def test_a_failing_run_is_named_and_the_others_are_done(root, capsys):
    with pytest.raises(TrainingError, match="2 of 4 runs failed: fold-0_family-broken, fold-1_fam"):
        run(root, "--fold", "0,1", "--family", "broken,rigid")
    assert len(calls(root)) == 4
    assert [row["status"] for row in rows(root)] == ["failed (1)", "done"] * 2
    assert "error: the family is broken" in capsys.readouterr().out
    assert "family is broken" in (root / "output/sweep/fold-0_family-broken/log.txt").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("text", ["mine", "subject,age\n", "\x00", ""])
def test_a_table_of_others_is_not_replaced(root, text):
    table = root / "output" / "sweep" / "results.csv"
    table.parent.mkdir(parents=True)
    table.write_text(text)
    with pytest.raises(StorageError, match=r"results\.csv: would be replaced"):
        run(root, "--fold", "0,1")
    assert table.read_text() == text
    assert not (root / "output" / "calls.txt").exists()


def test_two_sweeps_in_one_folder_are_refused(root):
    holder = (
        "import sys, time; from scripts.runtime.lock import lock_folders; "
        "kept = lock_folders([sys.argv[1]]); print('held', flush=True); time.sleep(60)"
    )

    with subprocess.Popen(
        [sys.executable, "-c", holder, str(root / "output/sweep")],
        stdout=subprocess.PIPE, text=True, cwd=cli.ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="another run is using"):
            run(root, "--fold", "0,1")
        process.terminate()
    lock_folders([root / "output/sweep"])[0].release()


def test_the_verb_knows_its_jobs(capsys):
    assert cli.main(["sweep", "nothing", "--fold", "0,1"]) == cli.EXIT_USAGE
    assert "a sweep needs one of train, build, export, register" in capsys.readouterr().err
    assert cli.main(["sweep", "check", "--a", "0,1"]) == cli.EXIT_USAGE
    assert "got 'check'" in capsys.readouterr().err
    assert cli.main(["sweep", "train_affine", "--fld", "0,1"]) == cli.EXIT_USAGE
    assert "did you mean --fold?" in capsys.readouterr().err


def test_a_setting_that_breaks_its_rule_is_reported_before_torch_is_loaded(capsys):
    words = ["train-affine", "--learned_affine#model#passes", "0"]
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert message == "error: learned_affine.model.passes = 0: must be an integer from 1 to 8\n"


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [("mdoe", "affine,joint", "unknown key"), ("mode", "affin,joit", "must be affine, elastic or")],
)
def test_settings_that_no_run_could_use_are_reported_first(tmp_path, capsys, key, values, message):
    words = ["--refine#fixed", "a.nii.gz", "--refine#moving", "['b.nii.gz']"]
    words += [f"--refine#{key}", values, "--output_dir", str(tmp_path)]
    assert cli.main(["sweep", "refine", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
