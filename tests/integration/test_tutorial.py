"""The tutorial, run from its code blocks. Jobs run in this process: a new one takes seconds."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from bundle import cli
from bundle.demo_people import LOWERED, LOWERED_BY, TRACTS

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TUTORIAL.read_text("utf-8"), re.M | re.S)


def answer(text: str) -> dict[str, list[float]]:
    """Numbers of the printed table by tract."""
    return {
        words[0]: [float(one) for one in words[1:]] for words in map(str.split, text.splitlines())
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands of the tutorial were run."""
    folder = tmp_path_factory.mktemp("tutorial")
    prepare, *jobs = blocks("bash")
    assert "python" not in prepare  # a shell's own: environment and folder
    with contextlib.chdir(folder):
        for block in jobs:
            program, dash, module, *words = shlex.split(block.replace("\\\n", " "))
            assert (program, dash, module) == ("python", "-m", "bundle")
            assert cli.main(words) == 0, block
    return folder


def test_the_answer_is_what_was_put_in(done: Path) -> None:
    (program,) = blocks("python")
    printed = io.StringIO()
    with contextlib.chdir(done), contextlib.redirect_stdout(printed):
        exec(program, {})
    result = answer(printed.getvalue())
    assert sorted(result) == sorted(TRACTS)
    for tract, (control, patient, difference) in result.items():
        assert difference == pytest.approx(patient - control, abs=0.011)
        if tract == LOWERED:
            assert -1.2 * LOWERED_BY < difference < -0.4 * LOWERED_BY
        else:
            assert abs(difference) < 0.025
    # What the page prints, up to the rounding of another machine.
    (table,) = [block for block in blocks("text") if "arcuate_l " in block]
    for tract, numbers in answer(table).items():
        assert numbers == pytest.approx(result[tract], abs=0.011)


def test_the_page_lists_the_files(done: Path) -> None:
    (listed,) = [block for block in blocks("text") if block.startswith("people/")]
    names = re.findall(r"^ +([\w.]+\.\w+)", listed, re.M)
    present = {path.name for path in (done / "people").rglob("*")}
    assert set(names) <= present
    assert {f"{tract}.trk" for tract in TRACTS} <= set(names)
    assert (done / "output/learned_atlas/quality.html").is_file()
    assert "viewer-tract" in (done / "output/learned_atlas/quality.html").read_text("utf-8")
