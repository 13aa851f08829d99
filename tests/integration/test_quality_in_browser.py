"""The quality page of a trained atlas, opened in headless Chromium."""

from __future__ import annotations

import json
import os

import pytest

from bundle.bench.browser import Browser, find_chromium

REQUIRED = "TRACT_ATLAS_REQUIRES_CHROMIUM"  # set by continuous integration, which installs it


@pytest.fixture(scope="module")
def browser(trained):
    if find_chromium() is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set and there is no Chromium on the path")
        pytest.skip("no Chromium on the path: the quality page isn't opened (apt install chromium)")
    with Browser(trained.atlas / "quality.html") as opened:
        yield opened


def test_nothing_is_complained_of_and_nothing_is_loaded(browser, trained):
    assert browser.value("document.readyState") == "complete"
    assert browser.seen.errors == []
    assert browser.seen.requests == [(trained.atlas / "quality.html").absolute().as_uri()]


def test_every_picture_is_decoded(browser):
    decoded = browser.value(
        "Promise.all([...document.images].map(one => one.decode()"
        ".then(() => [one.alt, one.naturalWidth, one.getBoundingClientRect().width])))"
    )
    names = [name for name, *_ in decoded]
    expected = ["template", "plain average", "sub-01", "sub-02", "sub-03"]
    expected += ["mean", "std", "std_error", "cov", "prob_threshold", "losses by epoch"]
    expected += [f"deformed grid of sub-0{number}" for number in (1, 2, 3)]
    assert names == expected
    assert all(natural > 100 and shown > 100 for _, natural, shown in decoded)
    # A picture of one colour shows nothing.
    flat = browser.value(
        """[...document.images].filter(one => {
             const canvas = document.createElement('canvas');
             [canvas.width, canvas.height] = [one.naturalWidth, one.naturalHeight];
             const context = canvas.getContext('2d'); context.drawImage(one, 0, 0);
             const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
             return data.every((value, i) => value === data[i % 4]); }).map(one => one.alt)"""
    )
    assert flat == []


def test_the_tables_say_what_was_published(browser, trained):
    about = json.loads((trained.atlas / "atlas.json").read_text())
    rows = browser.value(
        "[...document.querySelectorAll('#subjects tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    head, *subjects = rows
    assert head == [
        "subject", "loss", "overlap (Dice)", "correlation", "smallest det J",
        "displacement (voxels)",
    ]  # fmt: skip
    assert sorted(row[0] for row in subjects) == [
        one["subject"] for one in about["cohort"]["subjects"]
    ]
    for _, loss, overlap, correlation, determinant, moved in subjects:
        assert float(loss) > 0
        assert 0 < float(overlap) <= 1
        assert 0 < float(correlation) <= 1
        assert float(determinant) > 0
        assert float(moved) >= 0
    assert [float(row[3]) for row in subjects] == sorted(float(row[3]) for row in subjects)
    settings = browser.value("[...document.querySelectorAll('pre')].map(one => one.innerText)")
    assert json.loads(settings[0]) == about["settings"]
    assert json.loads(settings[1]) == about["versions"]
    headings = browser.value("[...document.querySelectorAll('h2')].map(one => one.innerText)")
    assert "Left out" in headings


def test_it_fits_the_window(browser):
    wide = browser.value("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def test_a_page_that_asks_for_more_is_noticed(tmp_path):
    """The check itself can fail."""
    if find_chromium() is None and not os.environ.get(REQUIRED):
        pytest.skip("no Chromium on the path: the quality page isn't opened (apt install chromium)")
    page = tmp_path / "page.html"
    page.write_text("<img src='none.png'><script>missing()</script>")
    with Browser(page) as opened:
        assert any("none.png" in address for address in opened.seen.requests)
        assert len(opened.seen.errors) >= 2
