"""The quality page of a trained atlas, opened in headless Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.publishing.page import document

RUN = "tractography/probtrackx2/whole_brain/warped_streamlines"
WHERE = "document.getElementById('viewer-where').textContent"
LEGEND = "document.getElementById('viewer-legend').textContent"
PIXELS = "[...document.querySelectorAll('#viewer-frame canvas')].map(one => one.toDataURL()).join()"


@pytest.fixture(scope="module")
def browser(trained, open_page):
    with open_page(trained.atlas / "quality.html") as opened:
        opened.until("document.getElementById('viewer-frame').dataset.ready")
        yield opened


def test_nothing_is_complained_of_and_nothing_is_loaded(browser, trained):
    assert browser.value("document.readyState") == "complete"
    assert browser.events.errors == []
    assert browser.events.requests == [(trained.atlas / "quality.html").absolute().as_uri()]


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


def shown_at(browser) -> tuple[np.ndarray, dict[str, str]]:
    """Position of the cross, mm, and what is read there."""
    place, *read = browser.value(WHERE).split(" · ")
    numbers = re.findall(r"-?[\d.]+", place)
    return np.array(numbers, float), dict(one.rsplit(": ", 1) for one in read)


def value_at(path: Path, world: np.ndarray) -> float:
    image = nib.load(path)
    cell = np.linalg.solve(image.affine, [*world, 1])[:3]
    return float(np.asarray(image.dataobj)[tuple(np.rint(cell).astype(int))])


def test_the_viewer_reads_what_the_files_hold(browser, trained):
    browser.choose("#viewer-overlay", "share of subjects (prob_threshold)")
    browser.until(f"{WHERE}.includes('prob_threshold')")
    seen = set()
    for right, down in ((0.5, 0.5), (0.4, 0.45), (0.55, 0.6)):
        browser.click("[data-view=axial]", right, down)
        world, read = shown_at(browser)
        seen.add(tuple(world))
        template = value_at(trained.atlas / "atlas_mean.nii.gz", world)
        # In 255 steps of the logarithm.
        assert float(read["template"]) == pytest.approx(template, rel=0.03, abs=2e-5)
        share = value_at(trained.atlas / "atlas_prob_threshold.nii.gz", world)
        assert float(read["share of subjects (prob_threshold)"].rstrip("% ")) == pytest.approx(
            share, abs=0.5
        )
    assert len(seen) == 3
    browser.choose("#viewer-overlay", "none")
    browser.until(f"!{WHERE}.includes('prob_threshold')")


def test_slices_scroll_by_slider_wheel_and_key(browser):
    at = "Number(document.querySelector('[data-axis=\"1\"]').value)"
    browser.click("[data-view=coronal]")
    before, drawn = browser.value(at), browser.value(PIXELS)
    world, _ = shown_at(browser)
    browser.wheel("[data-view=coronal]", -100)
    browser.until(f"{at} === {before + 1}")
    assert browser.value(PIXELS) != drawn
    moved, _ = shown_at(browser)
    assert np.flatnonzero(moved != world).tolist() == [1]  # to anterior
    assert moved[1] > world[1]
    browser.press("ArrowDown")
    browser.until(f"{at} === {before}")
    browser.press("PageDown")
    browser.until(f"{at} === {max(before - 10, 0)}")
    # A view that wasn't clicked lets the wheel scroll the page.
    browser.value("document.activeElement.blur()")
    browser.wheel("[data-view=sagittal]", 100)
    browser.click("[data-axis='1']", 0.99)
    last = browser.until(f"{at} > {before} && {at}")
    assert last >= int(browser.value("document.querySelector('[data-axis=\"1\"]').max")) - 1


def test_subjects_before_and_after_and_their_fields(browser, trained):
    browser.click("#subjects button")
    name = browser.value("document.querySelector('#subjects button').textContent")
    browser.until(f"{WHERE}.includes('{name}:')")
    browser.click("[data-view=axial]", 0.45, 0.45)
    browser.click("#viewer-before")
    browser.until(f"{WHERE}.includes('{name} before registration:')")
    world, read = shown_at(browser)
    run = trained.dataset_dir / name / RUN
    density = value_at(run / "fdt_paths.nii.gz", world) / float((run / "waytotal").read_text())
    assert float(read[f"{name} before registration"]) == pytest.approx(density, rel=0.03, abs=2e-5)
    pictures = {"none": browser.value(PIXELS)}
    for overlay, words in (
        ("deformed grid", "lines of the grid"),
        ("displacement", " mm"),
        ("local growth", "volume x"),
        ("template", "template: 0 to"),
    ):
        browser.choose("#viewer-overlay", overlay)
        browser.until(f"{LEGEND}.includes('{words}')")
        pictures[overlay] = browser.value(PIXELS)
    browser.click("#viewer-outline")
    browser.until(f"{LEGEND}.includes('line: ')")
    pictures["outline"] = browser.value(PIXELS)
    browser.click("#viewer-outline")
    browser.until(f"!{LEGEND}.includes('line: ')")
    browser.value(
        """(() => { const slider = document.getElementById('viewer-opacity'); slider.value = 0;
        slider.dispatchEvent(new Event('input')); })()"""
    )
    assert browser.value(PIXELS) == pictures["none"]  # an overlay that can't be seen
    assert len(set(pictures.values())) == len(pictures)
    browser.click("#viewer-before")
    browser.until(f"{WHERE}.includes('{name}:')")
    assert browser.events.errors == []


def test_every_subject_of_a_small_cohort_is_there(browser):
    options = browser.value(
        "[...document.querySelectorAll('#viewer-image option')].map(o => o.text)"
    )
    assert options[:2] == ["template", "plain average"]
    assert sorted(options[-5:]) == [f"sub-0{number}" for number in range(1, 6)]
    assert browser.value("document.querySelectorAll('#subjects button').length") == 5


def test_it_is_read_without_javascript(trained, open_page):
    with open_page(trained.atlas / "quality.html") as opened:
        opened.ask("Emulation.setScriptExecutionDisabled", value=True)
        opened.reload()
        assert opened.value("document.getElementById('viewer-section').offsetHeight") == 0
        assert "needs JavaScript" in opened.value("document.body.innerText")
        assert opened.value("document.images.length") == 14
        assert opened.value("document.querySelectorAll('#subjects button').length") == 0
        assert opened.events.errors == []


def test_a_script_in_the_text_is_not_run(tmp_path, open_page):
    """Whatever were not escaped: the policy of the page allows one script and no request."""
    inserted = "<script>document.title = 'run'</script><img src='none.png' onerror='missing()'>"
    page = tmp_path / "page.html"
    page.write_text(document("title", [inserted], "document.body.id = 'ours'"))
    with open_page(page) as opened:
        assert opened.value("document.body.id") == "ours"
        assert opened.value("document.title") == "title"
        assert any("Content Security Policy" in error for error in opened.events.errors)


def test_a_page_that_asks_for_more_is_noticed(tmp_path, open_page):
    """The check itself can fail."""
    page = tmp_path / "page.html"
    page.write_text("<img src='none.png'><script>missing()</script>")
    with open_page(page) as opened:
        assert any("none.png" in address for address in opened.events.requests)
        assert len(opened.events.errors) >= 2
