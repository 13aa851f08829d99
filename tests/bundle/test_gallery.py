"""The gallery in the docs is the one that its command makes."""

from __future__ import annotations

import io
import re
import shlex

import pytest
from PIL import Image

from bundle.bench.gallery import LARGEST, MADE, WIDTH, page, small
from bundle.bench.gallery_entries import ENTRIES, Entry
from bundle.jobs import JOBS
from bundle.places import ROOT

DOCS = ROOT / "docs"


def test_the_page_is_the_one_of_the_entries() -> None:
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == page()
    written = {path.stem for path in (DOCS / "pictures" / "gallery").iterdir()}
    assert written == {entry.name for entry in ENTRIES}
    drawn = {entry.name for entry in ENTRIES if entry.source is None}
    assert drawn == {*MADE, "viewer"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_small_and_its_command_exists(entry: Entry) -> None:
    path = DOCS / "pictures" / "gallery" / f"{entry.name}.png"
    assert path.stat().st_size <= LARGEST
    with Image.open(path) as picture:
        assert picture.width <= WIDTH
    if entry.source is not None:
        assert (DOCS / "pictures" / entry.source).is_file()
    assert len(entry.command.splitlines()) + len(entry.text) / 100 <= 5
    verbs = re.findall(r"python -m bundle ([\w-]+)", entry.command)
    assert set(verbs) <= {*JOBS, "density"}
    assert shlex.split(entry.command.replace("\\\n", " "))  # its quotes are closed


@pytest.mark.parametrize(
    ("given", "made"), [((2 * WIDTH, 300), (WIDTH, 150)), ((100, 300), (100, 300))]
)
def test_a_picture_is_made_small(given: tuple[int, int], made: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(small(Image.new("RGBA", given)))) as picture:
        assert picture.size == made


def test_colours_are_given_up_until_a_picture_fits() -> None:
    ramp = Image.linear_gradient("L")
    noise = Image.effect_noise((WIDTH, 200), 60)
    colours = []
    for given in (ramp, noise):
        written = small(given)
        assert len(written) <= LARGEST
        with Image.open(io.BytesIO(written)) as picture:
            colours.append(len(picture.getcolors() or ()))
    assert colours[0] > 96 > colours[1]
    with pytest.raises(ValueError, match="make it smaller"):
        small(Image.effect_noise((WIDTH, 2000), 60))
