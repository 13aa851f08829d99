"""``transforms.json`` from outside: what can't be is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.stack.transforms import read_transforms

INF, NAN = float("inf"), float("nan")


def about() -> dict[str, Any]:
    one = {"name": "a", "status": "registered", "pairwise": np.eye(3).tolist(),
           "composed": np.eye(3).tolist()}  # fmt: skip
    return {
        "format": "tract_atlas_registered_stack/1", "spacing": [1, 1, 1], "unit": "millimeter",
        "shape": [2, 9, 9], "crop_box": [0, 9, 0, 9], "reference": 0, "family": "rigid", "axis": 2,
        "order": [0, 1], "wander": {"rms": 0.0, "largest": 0.0, "section": 0},
        "sections": [{"index": 0, **one}, {"index": 1, **one}],
    }  # fmt: skip


def write(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    content = about()
    edit(content)
    path = folder / "transforms.json"
    path.write_text(json.dumps(content))
    return path


def test_what_is_right_is_read(tmp_path: Path) -> None:
    assert read_transforms(write(tmp_path, lambda a: None)).shape == (9, 9)


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: a.update(spacing=[INF, 1, 1]),
        lambda a: a.update(spacing=[1, NAN, 1]),
        lambda a: a.update(spacing=[1, 0, 1]),
        lambda a: a.update(shape=[2, INF, 9]),
        lambda a: a.update(shape=[3, 9, 9]),
        lambda a: a.update(crop_box=[0, 10, 0, 9]),
        lambda a: a.update(crop_box=[0, 9, 0, NAN]),
        lambda a: a.update(order=[0, 0]),
        lambda a: a.update(wander={}),
        lambda a: a.update(wander={"rms": "$x", "largest": 0, "section": 0}),
        lambda a: a.update(wander={"rms": NAN, "largest": 0, "section": 0}),
        lambda a: a.update(sections=3),
        lambda a: a["sections"][0].update(composed=[[10**39, 0, 0], [0, 0, 0], [0, 0, 1]]),
        lambda a: a["sections"][0].update(composed=[[INF, 0, 0], [0, 1, 0], [0, 0, 1]]),
        lambda a: a["sections"][0].update(status="$x"),
    ],
)
def test_what_cannot_be_is_refused(edit: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    path = write(tmp_path, edit)
    with pytest.raises(CohortError, match="is not a transforms") as caught:
        read_transforms(path)
    assert str(caught.value).isprintable()
