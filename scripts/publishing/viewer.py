"""The viewer on a page: slices of volumes that the page contains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripts.errors import shown
from scripts.publishing.viewer_volumes import BUDGET, Block, Layer, ViewedSubject, ViewerGrid

__all__ = ["STYLE", "Shown", "script", "viewer"]

STYLE = """
#viewer-frame { display: flex; gap: 6px; flex-wrap: wrap; align-items: flex-start }
#viewer-frame figure { flex-basis: 220px; background: #000; padding-bottom: .3rem }
#viewer-frame canvas { width: 100%; display: block; cursor: crosshair; touch-action: none }
#viewer-frame canvas:focus { outline: 2px solid #5cf }
#viewer-frame input { width: calc(100% - 1rem); margin: 0 .5rem }
#viewer-controls { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin-bottom: .6rem }
#viewer-controls label { display: flex; gap: .4rem; align-items: center }
#viewer-controls label[hidden] { display: none }
#viewer-controls select { max-width: 15rem } #viewer-controls input[type=range] { width: 7rem }
#viewer-where { margin: .4rem 0; font-variant-numeric: tabular-nums; min-height: 1.5em }
#viewer-legend { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; color: #444 }
#viewer-legend i { display: inline-block; width: 6rem; height: .7rem; margin-right: .5rem;
                   border: 1px solid #999 }
#subjects button { font: inherit; color: #06c; background: none; border: 0; padding: 0;
                   cursor: pointer; text-decoration: underline }
"""

_CONTROLS = """
<section id='viewer-section' hidden>
<div id='viewer-controls'>
<label>Image <select id='viewer-image'></select></label>
<label id='viewer-before-label'>
<input type='checkbox' id='viewer-before'> before registration</label>
<label id='viewer-tract-label'>Tract <select id='viewer-tract'></select></label>
<label>Overlay <select id='viewer-overlay'></select></label>
<label id='viewer-label-label' hidden>Label <select id='viewer-label'></select></label>
<label><input type='checkbox' id='viewer-outline'> outline</label>
<label>Opacity
<input type='range' id='viewer-opacity' min='0' max='1' step='0.05' value='0.6'></label>
<label>Brightness
<input type='range' id='viewer-brightness' min='0.2' max='4' step='0.1' value='1'></label>
</div>
<div id='viewer-frame'></div>
<p id='viewer-where' aria-live='polite'></p>
<div id='viewer-legend'></div>
<p class='note'>Click or drag in a view to move the cross. In a view that was clicked, the wheel and
the arrow keys change the slice. Letters: left, right, posterior, anterior, inferior, superior.
{content}</p>
</section>
<p class='note' id='viewer-old' hidden>This browser is too old for the viewer. The pictures below
show the same volumes.</p>
<noscript><p class='note'>The viewer of slices needs JavaScript. The pictures below show the same
volumes.</p></noscript>"""


@dataclass(frozen=True)
class Shown:
    """An image in the viewer.

    Attributes:
        group: title of its group.
        layer: the volumes.
    """

    group: str
    layer: Layer


@cache
def script() -> str:
    """The viewer's JavaScript."""
    return Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")


def viewer(
    grid: ViewerGrid,
    tracts: Sequence[str],
    images: Sequence[Shown],
    subjects: Sequence[ViewedSubject] = (),
    of: int = 0,
    overlays: Sequence[Shown] = (),
    overlay: str | None = None,
    group: str = "Subjects in template space, worst first",
    budget: int = BUDGET,
) -> str:
    """The viewer's part of a page, with its data.

    The content of the page is bounded: first all images and overlays, then their tracts up to half
    the budget, then the subjects, then the subjects' tracts.

    Args:
        grid: the voxels of all volumes.
        tracts: name per channel; empty for a single map.
        images: the first one is shown first.
        subjects: worst first; all that fit are added.
        of: number of all subjects; 0: the page is about one.
        overlays: layers that only lie over images, such as labels.
        overlay: title of the image whose outline is laid over the first one at the start.
        group: title of the subjects' images.
        budget: bytes.
    """
    page = _PageBlocks(budget)
    listed: list[tuple[dict[str, Any], Layer]] = []
    for one in images:
        listed.append((page.entry(one.layer, one.group, "image"), one.layer))
    for one in overlays:
        listed.append((page.entry(one.layer, one.group, "overlay"), one.layer))
    for entry, layer in listed:
        page.tracts(entry, layer, budget // 2)
    present = 0
    for subject in subjects:
        if not page.fits(layer.whole for layer in subject.layers.values()):
            break
        present += 1
        for role, layer in subject.layers.items():
            entry = page.entry(layer, group, role, subject.name)
            listed.append((entry, layer))
    for entry, layer in listed[len(images) + len(overlays) :]:
        page.tracts(entry, layer, budget)
    titles = [one.layer.title for one in images]
    # Where densities are compared, they are on one scale.
    top = max(
        (layer.whole.scale * 255 for _, layer in listed if layer.kind == "density"), default=1.0
    )
    index = {
        "grid": grid.about(),
        "tracts": [shown(name) for name in tracts] if len(tracts) > 1 else [],
        "layers": [entry for entry, _ in listed],
        "image": 0,
        "overlay": None if overlay is None else titles.index(overlay),
        "outline": overlay is not None,
        "cell": _busiest(images[0].layer.whole),
        "top": top,
    }
    return "\n".join(
        [
            _CONTROLS.format(content=_content(grid, present, of, page.missing)),
            f"<script type='application/json' id='viewer-index'>{json_block(index)}</script>",
            *(
                f"<script type='text/plain' id='viewer-{name}'>{block.data}</script>"
                for name, block in page.blocks.items()
            ),
        ]
    )


def json_block(value: Any) -> str:
    """JSON for a script block: ``<``, ``>`` and ``&`` are escaped, so that no text can end it."""
    written = json.dumps(value, allow_nan=False)
    for sign in "<>&":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written


class _PageBlocks:
    """The blocks of a page, up to a number of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.blocks: dict[str, Block] = {}
        self.size = 0
        self.missing = 0

    def fits(self, blocks: Any, limit: int | None = None) -> bool:
        """Whether there is room for these blocks."""
        limit = self.budget if limit is None else limit
        return self.size + sum(len(block.data) for block in blocks) <= limit

    def add(self, block: Block) -> dict[str, Any]:
        """Add a block; return its entry in the index of the script."""
        name = f"volume-{len(self.blocks)}"
        self.blocks[name] = block
        self.size += len(block.data)
        return {
            "id": name,
            "shape": list(block.shape),
            "scale": block.scale,
            "stored": block.stored.lstrip("<"),
        }

    def entry(
        self, layer: Layer, group: str, role: str, subject: str | None = None
    ) -> dict[str, Any]:
        """Add the whole of a layer."""
        about = {
            "title": shown(layer.title),
            "group": shown(group),
            "kind": layer.kind,
            "step": layer.step,
            "role": role,
            "whole": self.add(layer.whole),
            "tracts": [],
        }
        if layer.names:
            about["names"] = [shown(name) for name in layer.names]
        return about if subject is None else {**about, "subject": shown(subject)}

    def tracts(self, entry: dict[str, Any], layer: Layer, limit: int) -> None:
        """Add the tracts of a layer that still fit."""
        for block in layer.tracts:
            if block is not None and self.fits([block], limit):
                entry["tracts"].append(self.add(block))
            else:
                entry["tracts"].append(None)
                self.missing += 1


def _busiest(block: Block) -> list[int]:
    """The cell whose three slices show most: the largest sums along the axes."""
    values = block.values().astype(float)
    sums = [
        values.sum(axis=tuple(other for other in range(values.ndim) if other != axis))
        for axis in range(values.ndim)
    ]
    return [int(one.argmax()) for one in sums]


def _content(grid: ViewerGrid, present: int, of: int, missing: int) -> str:
    """The content of the page, in words."""
    parts = []
    if of:
        which = "all" if present == of else f"{present} of"
        worst = "" if present == of else ", the ones that fit the template worst"
        parts.append(f"The viewer contains {which} {of:,} subjects{worst}.")
    if max(grid.factors) > 1:
        blocks = " x ".join(map(str, grid.factors))
        parts.append(f"Each of its voxels is the mean of {blocks} voxels.")
    if missing:
        parts.append(f"{missing} volumes of single tracts are left out for size.")
    parts.append("Values are in 8 bits; the files have them in full.")
    return " ".join(parts)
