"""What label-check refuses before it installs or starts anything."""

from __future__ import annotations

import json
import re

import pytest

from bundle import cli
from bundle.monai_label.environment import LabelCheckError, LabelEnvironment

PINS = (cli.ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_versions_are_those_the_bundle_is_tested_with(tmp_path):
    result = LabelEnvironment(tmp_path / "env", cli.ROOT).constraints()
    ours = set(re.findall(r"^[\w.-]+==\S+", PINS, re.MULTILINE))
    assert {"torch==2.13.0", "monai==1.6.1"} <= set(result)
    assert set(result) - ours == {"torch==2.13.0"}
    assert not any(name.startswith("numpy==") for name in result)  # MONAI Label needs its own


def test_an_environment_that_is_there_is_taken_as_it_is(tmp_path):
    environment = LabelEnvironment(tmp_path, cli.ROOT)
    made = {"fingerprint": environment.fingerprint(), "seconds": 12.5}
    environment.stamp.write_text(json.dumps(made))
    assert environment.prepare() == 12.5
    assert [path.name for path in tmp_path.iterdir()] == [environment.stamp.name]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(LabelCheckError, match="contains something else"):
        LabelEnvironment(tmp_path, cli.ROOT).prepare()
    assert (tmp_path / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--archive", "a.zip"], "--archive and --studies go together"),
        (["--archive", "a.zip", "--studies", "maps"], "no such file or folder: a.zip"),
        (["--work", "."], "isn't empty"),
        (["--environment", "."], "contains something else"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = [word if word != "." else str(tmp_path) for word in words]
    if "--environment" not in words:
        words += ["--environment", str(tmp_path / "env")]
    if "--work" not in words:
        words += ["--work", str(tmp_path / "work")]
    assert cli.main(["label-check", *words]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if not line.startswith("label-check: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in output.err
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "work"}
