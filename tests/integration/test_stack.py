"""The verbs for stacks as a user types them, in this process: a new one takes seconds for torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from bundle import cli
from bundle.bench.browser import Browser
from bundle.places import DEMO_STACK_FOLDER
from scripts.phantom.serial_sections import SerialSections
from scripts.stack.demo import DEMO, write_demo_stack

SMALL = SerialSections(8, (64, 80), seed=2, shift=2.0, torn=(4,))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo stack, smaller."""
    return Path(write_demo_stack(tmp_path_factory.mktemp("demo") / "stack", SMALL)).parent


def test_a_demo_stack_is_registered_and_its_labels_follow(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, applied = tmp_path / "out", tmp_path / "applied"
    words = ["--stack", str(demo / "sections.zarr"), "--output_dir", str(out)]
    assert cli.main(["register-stack", *words, "--register_stack#n_workers", "1"]) == 0
    transforms = out / "registered_stack" / "transforms.json"
    statuses = [one["status"] for one in json.loads(transforms.read_text())["sections"]]
    assert statuses[0] == "reference"
    assert statuses[4] == "damaged"
    words = ["--stack", str(demo / "labels.zarr"), "--transforms", str(transforms)]
    more = ["--output_dir", str(applied), "--apply_stack#interpolation", "nearest"]
    assert cli.main(["apply-stack", *words, *more]) == 0
    image, labels = (
        np.asarray(zarr.open_array(str(one / "registered_stack/registered.zarr/0"), mode="r"))
        for one in (out, applied)
    )
    assert image.shape == labels.shape
    inner = [0, 1, 2, 3, 5, 6, 7]
    agreement = ((image[inner] < 190) == (labels[inner] == 1)).mean()
    assert agreement > 0.95


def test_the_page_opens_in_a_browser(demo: Path, tmp_path: Path, open_page: type[Browser]) -> None:
    words = ["--stack", str(demo / "sections.zarr"), "--output_dir", str(tmp_path)]
    assert cli.main(["register-stack", *words, "--register_stack#n_workers", "1"]) == 0
    page = tmp_path / "registered_stack" / "quality.html"
    with open_page(page) as opened:
        drawn = opened.value(
            "Promise.all([...document.images].map(one => one.decode()"
            ".then(() => [one.naturalWidth, one.getBoundingClientRect().width])))"
        )
        assert len(drawn) == 5
        assert all(natural >= 32 and shown > 100 for natural, shown in drawn)
        rows = opened.value("document.querySelectorAll('#sections tr').length")
        assert rows == 1 + SMALL.count
        assert opened.value("document.querySelector('tr.damaged td').innerText") == "4"
        wide = opened.value("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]
        assert opened.events.errors == []
        assert opened.events.requests == [page.as_uri()]


@pytest.mark.parametrize(
    ("verb", "words", "code", "message"),
    [
        (
            "register-stack", ["--stack", "none.zarr"], 3,
            "none.zarr: no such file or folder (register_stack.stack)",
        ),
        (
            "register-stack", ["--register_stack#loss", "nmi"], 2,
            "register_stack.loss = 'nmi': must be ncc, mse, mae or ssim",
        ),
        (
            "register-stack", ["--register_stack#neighbors", "3"], 2,
            "register_stack.neighbors = 3: unknown key; did you mean neighbours?",
        ),
        (
            "register-stack", ["--register_stack#learning_rate", "[1e-3,1e-4]"], 2,
            "learning_rate has 2 entries, but pyramid_levels is 4",
        ),
        ("apply-stack", ["--stack", "a.zarr"], 2, "apply_stack.transforms = '': is missing"),
        (
            "apply-stack", ["--stack", "a.zarr", "--transforms", "b.json"], 3,
            "b.json: can't be read: No such file or directory",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    verb: str, words: list[str], code: int, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli.main([verb, *words, "--output_dir", str(tmp_path / "out")]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_the_demo_is_made_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    monkeypatch.setattr(
        "scripts.stack.demo.write_demo_stack", lambda folder: made.append(folder) or folder
    )
    assert cli.main(["demo", "--stack"]) == 0
    assert cli.main(["demo", "--stack", "--folder", str(tmp_path)]) == 0
    assert made == [DEMO_STACK_FOLDER, tmp_path]


def test_the_demo_has_every_kind_of_damage_and_spares_what_is_not_its_own(tmp_path: Path) -> None:
    assert DEMO.torn and DEMO.ruined and DEMO.blank
    (tmp_path / "mine.txt").write_text("mine")
    from scripts.errors import StorageError

    with pytest.raises(StorageError, match="contains something other than a demo stack"):
        write_demo_stack(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_phantoms_truth_is_exact() -> None:
    still = SerialSections(3, (64, 80), angle=0, shift=0, noise=0)
    moved = SerialSections(3, (64, 80), angle=0, shift=4, noise=0)
    matrix = moved.composed[2]
    rows, columns = np.rint(matrix[:2, 2]).astype(int)
    # Up to the fraction of a pixel, and the brightness of each section, they show the same.
    one, other = (s.section(2).astype(float)[20:40, 25:50] for s in (still, moved))
    there = moved.section(2).astype(float)[20 + rows : 40 + rows, 25 + columns : 50 + columns]
    assert np.corrcoef(one.ravel(), there.ravel())[0, 1] > 0.95
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.95
