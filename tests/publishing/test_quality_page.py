"""The quality page is self-contained and shows the values that it is given."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.publishing.quality_page import quality_page
from scripts.spatial.projections import three_views

ABOUT = {
    "n_subjects": 2,
    "created": "2026-11-20T12:00:00+00:00",
    "training_space": "template_native",
    "normalisation": "max",
    "fields": {
        "smallest_jacobian": 0.25,
        "folded": 0,
        "mean_displacement_rms_voxels": 0.125,
        "displacement_rms_voxels": 3.5,
    },
    "cohort": {
        "rejected": [{"subject": "sub-<bad>", "reason": "is empty & lost"}],
        "without_map": ["sub-99"],
    },
    "settings": {"optimizer": {"lr": 0.5}},
    "versions": {"torch": "2.13.0"},
}


def subjects() -> list[dict[str, object]]:
    return [
        {"subject": "good", "loss": 0.125, "overlap": 0.875, "correlation": 0.9,
         "smallest_jacobian": 0.5, "displacement": 1.0},
        {"subject": "poor", "loss": None, "overlap": 0.5, "correlation": 0.1,
         "smallest_jacobian": 0.25, "displacement": 9.0},
        {"subject": "torn", "loss": 0.5, "overlap": 0.75, "correlation": 0.8,
         "smallest_jacobian": -0.5, "displacement": 9.0},
    ]  # fmt: skip


def page(shape: tuple[int, ...]) -> str:
    volume = np.zeros(shape)
    volume[(slice(2, 5),) * len(shape)] = 1
    return quality_page(
        ABOUT,
        {"template": volume, "plain average": volume},
        {"mean": volume, "std": 0 * volume},
        subjects(),
        {"good": np.zeros((len(shape), *shape))},
        [{"loss": 1.0, "smoothness": 0.0}, {"loss": 0.5, "smoothness": 0.1}],
    )


@pytest.mark.parametrize("shape", [(7, 9, 8), (7, 9)])
def test_page_is_whole_and_loads_nothing(shape: tuple[int, ...]) -> None:
    text = page(shape)
    assert not re.search(r"(src|href)=['\"](?!data:)", text)
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 6  # two pictures, two maps, the losses, one grid
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in pictures)
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Balance().feed(text)
    assert not opened


def test_worst_subject_first_folds_marked_text_escaped() -> None:
    text = page((7, 9, 8))
    places = [text.index(f"<td>{name}</td>") for name in ("torn", "poor", "good")]
    assert places == sorted(places)
    assert "<tr class='bad'><td>torn</td>" in text
    assert "<td>poor</td><td></td><td>0.500</td>" in text
    assert "<td>good</td><td>0.1250</td><td>0.875</td><td>0.900</td><td>0.5</td>" in text
    assert "sub-&lt;bad&gt;" in text
    assert "is empty &amp; lost" in text
    assert "<td>sub-99</td><td>folder without a map</td>" in text


def test_views_put_superior_up() -> None:
    volume = np.zeros((4, 5, 6))
    volume[1, 2, 5] = 1  # the top slice
    views = three_views(volume, gap=0)
    sagittal = views[:, :5]
    assert np.argwhere(sagittal).tolist() == [[0, 2]]
    assert views.shape == (6, 5 + 4 + 4)
