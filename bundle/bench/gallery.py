"""Makes the gallery: docs/gallery.md with a small picture for each job.

    python -m bundle.bench.gallery docs
    python -m bundle.bench.gallery docs --only viewer

Eight pictures are made from the people of the tutorial, larger (about five minutes). The others are
small copies of the pictures in the docs, which other commands draw. The picture of the viewer needs
Chromium.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from bundle import cli
from bundle.bench.browser import Browser
from bundle.bench.gallery_entries import ENTRIES, Entry
from bundle.demo_people import TRACTS, write_demo_people
from scripts import api
from scripts.phantom.demo import DemoCohort
from scripts.spatial.projections import three_views
from scripts.tractograms import open_tractogram

WIDTH = 560
"""Pixels of a picture."""
LARGEST = 60_000
"""Bytes of a picture."""
PEOPLE = DemoCohort(subjects=12, held_out=0, shape=(48, 54, 48), streamlines=80)
_LISTED = 8  # lines of the list of overlays
_COLOURS = {"control": "#3b6fb6", "patient": "#d1592f"}


@dataclass(frozen=True)
class Outputs:
    """What the jobs of the tutorial wrote.

    Attributes:
        people: dataset folder.
        output: output folder, with `learned_atlas` and what the other jobs made of it.
    """

    people: Path
    output: Path

    @property
    def atlas(self) -> Path:
        """The published atlas."""
        return self.output / "learned_atlas"

    @property
    def names(self) -> list[str]:
        """Names of the people."""
        return PEOPLE.names


def page(entries: Sequence[Entry] = ENTRIES) -> str:
    """Text of docs/gallery.md."""
    parts = [
        "# Gallery",
        "",
        "One picture and a few lines for each job. `python -m bundle.bench.gallery docs` makes "
        "this page.",
    ]
    for one in entries:
        parts += [
            "",
            f"## {one.title}",
            "",
            f"![{one.title}](pictures/gallery/{one.name}.png)",
            "",
            "```bash",
            one.command,
            "```",
            "",
            one.text,
        ]
    return "\n".join([*parts, ""])


def run(folder: Path) -> Outputs:
    """Run the jobs on larger people of the tutorial, in this process.

    Raises:
        RuntimeError: a job failed; it has printed why.
    """
    made = Outputs(folder / "people", folder / "output")
    write_demo_people(made.people, PEOPLE)
    _write_labels(made)
    cohort = (
        "--dataset_dir", made.people, "--learned_atlas#cohort#layout", "streamlines",
        "--learned_atlas#cohort#reference", "reference.nii.gz",
        "--learned_atlas#model#channels", len(TRACTS),
        "--learned_atlas#cohort#tracts", str(list(TRACTS)),
    )  # fmt: skip
    labels = (
        "--learned_atlas#cohort#labels", "{subject}/labels.nii.gz",
        "--learned_atlas#cohort#label_names", "labels.tsv",
    )  # fmt: skip
    output = ("--output_dir", made.output)
    tracts = ("--tract_stats#tracts", str(list(TRACTS)))
    images = ("--tract_stats#images", f"{{'FA': '{made.people}/{{subject}}/fa.nii.gz'}}")
    for words in (
        ("build", *cohort, *labels, *output, "--ckpt_dir", folder / "models"),
        ("carry", *output),
        ("tract-stats", *output, *tracts, *images),
        ("compare", *cohort, *output, "--carried_dir", made.output),
    ):
        _job(*words)
    for tract in TRACTS:
        _job(
            "warp-streamlines", "--atlas_dir", made.atlas,
            "--output_dir", made.output / "moved" / tract,
            "--warp_streamlines#subjects", str(made.names),
            "--warp_streamlines#tractogram", f"{made.people}/{{subject}}/{tract}.trk",
        )  # fmt: skip
    return made


def _write_labels(made: Outputs) -> None:
    """Write each person's label map: in each voxel the tract that most streamlines visit."""
    reference = made.people / "reference.nii.gz"
    for name in made.names:
        folder = made.people / name
        counts = np.stack([api.density_map(folder / f"{one}.trk", reference) for one in TRACTS])
        numbers = np.where(counts.any(0), counts.argmax(0) + 1, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(numbers, PEOPLE.affine), folder / "labels.nii.gz")
    rows = [f"{number}\t{tract}" for number, tract in enumerate(TRACTS, start=1)]
    (made.people / "labels.tsv").write_text("\n".join(["index\tname", *rows, ""]))


def _job(*words: object) -> None:
    code = cli.main([str(word) for word in words])
    if code:
        raise RuntimeError(f"{words[0]} ended with {code}")


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def _figure(height: float, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _values(path: Path) -> np.ndarray:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float64)


def _projections(axis: Any, volume: np.ndarray, title: str) -> None:
    """Maximum projections of log density over all tracts."""
    whole = volume.max(axis=-1) if volume.ndim == 4 else volume
    axis.imshow(three_views(np.log1p(whole / (0.02 * whole.max()))), cmap="inferno")
    axis.set_title(title, fontsize=11)
    axis.axis("off")


def density(made: Outputs) -> Any:
    """Streamlines of one person, counted."""
    figure, (axis,) = _figure(2.4)
    paths = [made.people / "sub-01" / f"{tract}.trk" for tract in TRACTS]
    counted = made.output / "tdi.nii.gz"
    reference = made.people / "reference.nii.gz"
    _job("density", *paths, "--reference", reference, "--output", counted)
    _projections(axis, _values(counted), "sub-01: streamlines per voxel")
    return figure


def atlas(made: Outputs) -> Any:
    """Plain average and template."""
    figure, axes = _figure(1.6, 2)
    _job(
        "average", "--dataset_dir", made.people, "--output_dir", made.output,
        "--learned_atlas#cohort#layout", "streamlines",
        "--learned_atlas#cohort#reference", "reference.nii.gz",
    )  # fmt: skip
    _projections(axes[0], _values(made.output / "atlas/atlas_mean.nii.gz"), "plain average")
    _projections(axes[1], _values(made.atlas / "atlas_mean.nii.gz"), "learned template")
    return figure


def carry(made: Outputs) -> Any:
    """A tract of the atlas in three people's spaces, over their FA."""
    figure, axes = _figure(2.6, 3)
    tract = TRACTS.index("corticospinal_l")
    for axis, name in zip(axes, made.names[:3], strict=True):
        fa = _values(made.people / name / "fa.nii.gz")
        carried = _values(made.output / name / "atlas_in_patient_space/atlas_mean.nii.gz")
        density = carried[..., tract]
        cut = int(density.sum(axis=(0, 2)).argmax())
        axis.imshow(fa[:, cut].T, origin="lower", cmap="gray", vmin=0, vmax=0.6)
        axis.contour(density[:, cut].T, [0.1 * density.max()], colors="#4fc3ff", linewidths=1.5)
        axis.set_title(name, fontsize=11)
        axis.axis("off")
    return figure


def streamlines(made: Outputs) -> Any:
    """One tract of all people before and after, seen from the left."""
    from matplotlib import colormaps

    figure, axes = _figure(2.9, 2, sharex=True, sharey=True)
    tract = "arcuate_l"
    for axis, title, pattern in (
        (axes[0], "twelve people as they are", f"{made.people}/{{0}}/{tract}.trk"),
        (
            axes[1],
            "in template space",
            f"{made.output}/moved/{tract}/warped_streamlines/{{0}}/{tract}.trk",
        ),
    ):
        for number, name in enumerate(made.names):
            moved = open_tractogram(pattern.format(name)).read()
            for line in [moved[i] for i in range(0, len(moved), 4)]:
                colour = colormaps["hsv"](number / len(made.names))
                axis.plot(-line[:, 1], line[:, 2], color=colour, linewidth=0.5, alpha=0.6)
        axis.set_title(title, fontsize=11)
        axis.set_aspect("equal")
        axis.axis("off")
    return figure


def statistics(made: Outputs) -> Any:
    """FA of controls and patients by tract."""
    with (made.people / "participants.tsv").open() as file:
        groups = {
            row["participant_id"]: row["group"] for row in csv.DictReader(file, delimiter="\t")
        }
    with (made.output / "tract_statistics/tract_statistics.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["image"], row["statistic"]) == ("FA", "mean")
        ]
    figure, (axis,) = _figure(2.8)
    for place, tract in enumerate(TRACTS):
        for side, group in ((-0.15, "control"), (0.15, "patient")):
            values = [
                float(row["value"])
                for row in rows
                if row["tract"] == tract and groups[row["subject"]] == group
            ]
            label = group if place == 0 else None
            x = np.full(len(values), place + side)
            axis.plot(x, values, "o", color=_COLOURS[group], markersize=4, label=label)
            axis.plot(place + side, np.mean(values), "_", color="black", markersize=14)
    axis.set_xticks(range(len(TRACTS)), [name.replace("_", "\n") for name in TRACTS], fontsize=10)
    axis.set_ylabel("mean FA")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=9)
    return figure


def similarity(made: Outputs) -> Any:
    """Dice of each person and tract with the atlas in that person's space."""
    with (made.output / "tract_similarity/cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    column = next(name for name in rows[0] if name.split(".")[-1] == "dice")
    result = {(row["tract"], row["subject"]): float(row[column]) for row in rows}
    table = np.array([[result[tract, name] for name in made.names] for tract in TRACTS])
    figure, (axis,) = _figure(2.4)
    shown = axis.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(TRACTS)), TRACTS, fontsize=10)
    axis.set_xticks(range(len(made.names)), [name[-2:] for name in made.names], fontsize=10)
    axis.set_xlabel("subject")
    figure.colorbar(shown, ax=axis, label="Dice")
    return figure


def pairs(made: Outputs) -> Any:
    """Two people's FA registered: affine, then deformable."""
    fixed, moving = (made.people / name / "fa.nii.gz" for name in ("sub-01", "sub-05"))
    start = api.affine_registration(fixed, moving)
    result = api.deformable_registration(fixed, moving, start=start)
    panels = {
        "fixed": _values(fixed),
        "moving": _values(moving),
        "affine": api.warp(moving, fixed, [start]),
        "deformable": api.warp(moving, fixed, [result]),
    }
    figure, axes = _figure(2.2, 4)
    outline = _values(fixed)
    cut = outline.shape[1] // 2
    for axis, (title, volume) in zip(axes, panels.items(), strict=True):
        axis.imshow(volume[:, cut].T, origin="lower", cmap="gray", vmin=0, vmax=0.6)
        axis.contour(outline[:, cut].T, [0.35], colors="#ffb000", linewidths=0.8)
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    return figure


def viewer(made: Outputs, docs: Path) -> Image.Image:
    """The page's viewer, as ``pictures/viewer.png`` and smaller.

    Above the views with labels, below those with the deformed grid and the open list of overlays.
    """
    target = docs / "pictures" / "viewer.png"
    with Browser(made.atlas / "quality.html", width=1000) as browser:
        browser.until("document.getElementById('viewer-frame').dataset.ready")
        browser.click("#subjects button")
        browser.until("document.getElementById('viewer-image').value > 0")
        parts = [_viewed(browser, target, "labels", "each in its colour")]
        browser.value(f"document.getElementById('viewer-overlay').size = {_LISTED}")
        parts.append(_viewed(browser, target, "deformed grid", "lines"))
    picture = Image.new("RGB", (parts[0].width, sum(one.height for one in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
    return picture


def _viewed(browser: Browser, work: Path, overlay: str, legend: str) -> Image.Image:
    """A picture of the viewer with one overlay, from the controls to the legend."""
    browser.choose("#viewer-overlay", overlay)
    browser.until(
        f"document.getElementById('viewer-legend').textContent.includes({json.dumps(legend)})"
    )
    browser.picture(work)
    top, bottom = browser.value(
        """(() => {
          const box = (id) => document.getElementById(id).getBoundingClientRect();
          return [box('viewer-section').top + window.scrollY,
                  box('viewer-legend').bottom + window.scrollY];
        })()"""
    )
    picture = Image.open(work).convert("RGB")
    return picture.crop((0, round(top) - 8, picture.width, round(bottom) + 8))


MADE: dict[str, Callable[[Outputs], Any]] = {
    "density": density,
    "atlas": atlas,
    "carry": carry,
    "streamlines": streamlines,
    "statistics": statistics,
    "similarity": similarity,
    "pairs": pairs,
}


def small(picture: Image.Image) -> bytes:
    """A PNG at most `WIDTH` pixels wide, with as many colours as fit into `LARGEST` bytes.

    Raises:
        ValueError: the picture doesn't fit with the fewest colours either.
    """
    height = round(picture.height * min(1, WIDTH / picture.width))
    shrunk = picture.convert("RGB").resize(
        (min(WIDTH, picture.width), height), Image.Resampling.LANCZOS
    )
    for colours in (256, 128, 96, 64, 48, 32, 24, 16):
        buffer = io.BytesIO()
        reduced = shrunk.quantize(colours, dither=Image.Dither.NONE)
        reduced.save(buffer, format="png", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
    raise ValueError(f"a picture has more than {LARGEST} bytes with 16 colours; make it smaller")


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", pad_inches=0.08)
    return Image.open(buffer)


def write(docs: Path, made: Outputs, only: str | None = None) -> None:
    """Write the page and its pictures below ``docs``.

    Args:
        docs: the folder of the docs.
        made: what the jobs wrote.
        only: name of the entry whose picture to write; None: all pictures.
    """
    folder = docs / "pictures" / "gallery"
    folder.mkdir(exist_ok=True)
    for entry in ENTRIES:
        if only not in (None, entry.name):
            continue
        picture: Image.Image
        if entry.source is not None:
            picture = Image.open(docs / "pictures" / entry.source)
        elif entry.name == "viewer":
            picture = viewer(made, docs)
        else:
            picture = _drawn(MADE[entry.name](made))
        (folder / f"{entry.name}.png").write_bytes(small(picture))
    (docs / "gallery.md").write_text(page(), encoding="utf-8")


def main() -> None:
    """Make the gallery."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("docs", type=Path)
    parser.add_argument("--work", type=Path, help="keep the jobs' output here")
    parser.add_argument("--only", choices=[one.name for one in ENTRIES], help="draw this picture")
    options = parser.parse_args()
    if options.work is not None:
        write(options.docs, run(options.work), options.only)
        return
    with tempfile.TemporaryDirectory() as work:
        write(options.docs, run(Path(work)), options.only)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
