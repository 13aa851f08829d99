"""The viewer's part of a page: bounded, escaped, decodable without a browser."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.publishing.page import document
from scripts.publishing.viewer import STYLE, Shown, json_block, script, viewer
from scripts.publishing.viewer_volumes import ViewedSubject, ViewerGrid
from scripts.spatial.grid import CropBox, Grid

SHAPE = (5, 6, 7)
EVIL = "</script><script>alert(1)</script><!--\u2028\u202e"


class Blocks(HTMLParser):
    """Script blocks of a page, and every attribute that loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.loads: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [str(given[name]) for name in ("src", "href", "action") if name in given]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((given, ""))

    def handle_data(self, data: str) -> None:
        if self.inside:
            given, before = self.scripts[-1]
            self.scripts[-1] = (given, before + data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def grid() -> ViewerGrid:
    header = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)).header
    return ViewerGrid.of(Grid(SHAPE, np.eye(4), header), CropBox((0, 0, 0), SHAPE), 0.01)


def density(seed: int, tracts: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((tracts, *SHAPE))


def subject(name: str, seed: int, tracts: int = 1) -> ViewedSubject:
    view = grid()
    field = np.random.default_rng(seed).normal(0, 1, (3, *SHAPE))
    return ViewedSubject(
        name,
        (True, 0.5, seed),
        {
            "image": view.density(name, density(seed, tracts)),
            "before": view.density(f"{name} before", density(seed + 1, tracts)),
            "field": view.field(f"field of {name}", field),
        },
    )


def page(text: str) -> tuple[dict[str, Any], dict[str, np.ndarray], Blocks]:
    """Index and volumes, decoded as the script decodes them."""
    blocks = Blocks()
    blocks.feed(document("t", [text], script(), STYLE))
    (index,) = [json.loads(data) for given, data in blocks.scripts if "json" in str(given)]
    data = {str(given["id"]): one for given, one in blocks.scripts if "text/plain" in str(given)}
    volumes = {}
    for layer in index["layers"]:
        for block in [layer["whole"], *layer["tracts"]]:
            if block is None:
                continue
            raw = gzip.decompress(base64.b64decode(data.pop(f"viewer-{block['id']}")))
            kind = np.dtype(block["stored"]).newbyteorder("<")
            volumes[block["id"]] = np.frombuffer(raw, kind).reshape(block["shape"])
    assert not data  # every block belongs to a layer
    return index, volumes, blocks


def test_the_page_contains_the_voxels_unchanged() -> None:
    view, template = grid(), density(0, 2)
    images = [Shown("Atlas", view.density("template", template))]
    people = [subject("a", 1, 2), subject("b", 5, 2)]
    index, volumes, blocks = page(viewer(view, ["left", "right"], images, people, of=9))
    assert index["tracts"] == ["left", "right"]
    assert [layer["title"] for layer in index["layers"]] == [
        "template", "a", "a before", "field of a", "b", "b before", "field of b",
    ]  # fmt: skip
    layers = [images[0].layer, *people[0].layers.values(), *people[1].layers.values()]
    for entry, layer in zip(index["layers"], layers, strict=True):
        for one, block in zip(
            [entry["whole"], *entry["tracts"]], [layer.whole, *layer.tracts], strict=True
        ):
            assert np.array_equal(volumes[one["id"]], block.values())
            assert one["scale"] == block.scale
    whole = index["layers"][0]["whole"]
    shown = np.expm1(volumes[whole["id"]] * whole["scale"]) * index["grid"]["offset"]
    assert np.allclose(shown, template.max(axis=0), rtol=0.02)
    assert blocks.loads == []
    # It starts where there is most to see.
    assert all(0 <= cell < n for cell, n in zip(index["cell"], SHAPE, strict=True))


def test_text_ends_no_block_and_is_no_markup() -> None:
    view = grid()
    images = [Shown(EVIL, view.density(EVIL, density(0, 2)))]
    text = viewer(view, [EVIL, "b"], images, [subject(EVIL, 1, 2)], of=1)
    index, _, blocks = page(text)
    assert "alert(1)</script>" not in text
    assert index["layers"][0]["title"].startswith("</script><script>alert(1)")
    assert index["tracts"][0].startswith("</script>")
    assert "\u202e" not in json.dumps(index, ensure_ascii=False)  # it would turn the text around
    # The only program is ours, and the policy names no other.
    programs = [data for given, data in blocks.scripts if not given]
    assert programs == [script()]
    digest = base64.b64encode(sha256(script().encode()).digest()).decode()
    whole = html.unescape(document("t", [text], script(), STYLE))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', whole)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_a_page_without_a_viewer_runs_nothing() -> None:
    assert "script-src 'none'" in html.unescape(document(EVIL, []))
    assert "<script" not in document(EVIL, [])


@pytest.mark.parametrize("value", [EVIL, {"a": ["<!--", "]]>", "&lt;"]}])
def test_json_is_kept_and_has_no_markup(value: Any) -> None:
    written = json_block(value)
    assert json.loads(written) == value
    assert not set("<>&") & set(written)


def test_the_page_is_bounded_and_says_so() -> None:
    view = grid()
    images = [Shown("Atlas", view.density("template", density(0, 2)))]
    people = [subject(f"s{i}", i, 2) for i in range(6)]
    first = sum(len(layer.whole.data) for layer in people[0].layers.values())
    room = len(images[0].layer.whole.data) + 3 * first
    text = viewer(view, ["left", "right"], images, people, of=1000, budget=room)
    index, _, _ = page(text)
    shown = {layer.get("subject") for layer in index["layers"]} - {None}
    assert 0 < len(shown) < 6
    assert f"{len(shown)} of 1,000 subjects" in text
    assert shown == {f"s{i}" for i in range(len(shown))}  # the worst
    size = sum(len(one) for one in re.findall(r"volume-\d+'>([^<]*)<", text))
    assert size <= room
    missing = sum(block is None for layer in index["layers"] for block in layer["tracts"])
    assert missing
    assert f"{missing} volumes of single tracts are left out" in text


def test_a_small_cohort_is_shown_completely() -> None:
    images = [Shown("Atlas", grid().density("template", density(0)))]
    text = viewer(grid(), [], images, [subject("a", 1), subject("b", 2)], of=2)
    assert "all 2 subjects" in text
    index, _, _ = page(text)
    assert index["tracts"] == []
    assert [layer["role"] for layer in index["layers"]].count("before") == 2


def test_labels_are_stored_with_their_names_and_only_as_an_overlay() -> None:
    view = grid()
    numbers = np.random.default_rng(0).choice([0, 17, 400_000], SHAPE)
    images = [Shown("Atlas", view.density("template", density(0)))]
    overlays = [Shown("Labels", view.labels("labels", numbers, {17: EVIL}))]
    text = viewer(view, [], images, [subject("a", 1)], of=1, overlays=overlays)
    index, volumes, _ = page(text)
    template, labels, *others = index["layers"]
    assert [template["role"], labels["role"]] == ["image", "overlay"]
    assert all(layer["subject"] == "a" for layer in others)
    assert labels["names"][0].startswith("</script>")
    assert labels["names"][1] == "400000"
    stored = volumes[labels["whole"]["id"]]
    assert np.array_equal(np.array([0, 17, 400_000])[stored], numbers)


def test_one_image_may_lie_over_another() -> None:
    images = [Shown("A", grid().density(title, density(0))) for title in ("patient", "atlas")]
    index, _, _ = page(viewer(grid(), [], images, overlay="atlas"))
    assert (index["image"], index["overlay"], index["outline"]) == (0, 1, True)
